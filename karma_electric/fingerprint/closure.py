"""What a stage's code consists of: the modules of ours that it can import, and the packages that those use.

Imports are read from the syntax tree, so imports inside functions count and nothing is run. Imports under
`if TYPE_CHECKING:` do not count: they never happen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from karma_electric.errors import InputError

OUR_PACKAGES = ("karma_electric", "stages")

# Validates the recipe before any stage runs. It can refuse a build; it can't change a byte of one.
VALIDATION_ONLY = frozenset({"karma_electric.recipe"})

# Calls that name a package in a string: the package counts as used.
_NAMING_CALLS = frozenset({"import_module", "find_spec", "__import__"})


@dataclass(frozen=True)
class Closure:
    """Our files (module name -> path), and the top-level names that they import from elsewhere."""

    modules: dict[str, Path]
    third_party: frozenset[str]


def import_closure(root: Path, entry: str) -> Closure:
    """Everything of ours that the module `entry` can import, itself included; `root` holds the packages' folders."""
    modules: dict[str, Path] = {}
    third_party: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in modules or name in VALIDATION_ONLY:
            continue
        path = _module_path(root, name)
        if path is None:
            raise InputError(f"{name}: no such module below {root}; correct the import")
        modules[name] = path
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        for imported in _imports(ast.parse(path.read_text("utf-8")), name, path):
            top_level = imported.module.split(".")[0]
            if top_level in OUR_PACKAGES:
                waiting.extend(_our_modules(root, imported, path))
            elif top_level not in sys.stdlib_module_names:
                third_party.add(top_level)
    return Closure(modules=dict(sorted(modules.items())), third_party=frozenset(third_party))


def package_data(root: Path, modules: Iterable[str]) -> list[Path]:
    """Files that are no Python (templates, grammars) in the packages of `modules` and their plain subfolders."""
    folders = {_package_folder(root, name) for name in modules}
    found = {path for folder in folders for path in _data_files(folder)}
    return sorted(found)


def _data_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name == "__pycache__" or path.name.startswith("."):
            continue
        if path.is_file() and path.suffix not in {".py", ".pyc", ".typed"}:
            yield path
        elif path.is_dir() and not (path / "__init__.py").exists():
            yield from _data_files(path)


def _package_folder(root: Path, name: str) -> Path:
    folder = root.joinpath(*name.split("."))
    return folder if folder.is_dir() else folder.parent


def _module_path(root: Path, name: str) -> Path | None:
    stem = root.joinpath(*name.split("."))
    for path in (stem / "__init__.py", stem.with_suffix(".py")):
        if path.is_file():
            return path
    return None


@dataclass(frozen=True)
class _Import:
    """A module that is imported, what is taken from it (a module of its own, or an attribute), and the line."""

    module: str
    names: tuple[str, ...]
    line: int


def _our_modules(root: Path, imported: _Import, path: Path) -> Iterator[str]:
    """The module, and those of its names that are modules."""
    if _module_path(root, imported.module) is None:
        raise InputError(f"{path}:{imported.line}: {imported.module} is no module below {root}; correct the import")
    yield imported.module
    submodules = (f"{imported.module}.{name}" for name in imported.names)
    yield from (name for name in submodules if _module_path(root, name) is not None)


def _imports(tree: ast.AST, module: str, path: Path) -> Iterator[_Import]:
    for node in _running_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (_Import(alias.name, (), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_base(node, module, is_package=path.name == "__init__.py")
            yield _Import(base, tuple(alias.name for alias in node.names), node.lineno)
        elif isinstance(node, ast.Call) and (name := _named_in_call(node, path)):
            yield _Import(name, (), node.lineno)


def _running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Like ast.walk, but without the bodies of `if TYPE_CHECKING:`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


def _is_type_checking(test: ast.expr) -> bool:
    """`TYPE_CHECKING` or `typing.TYPE_CHECKING`, not a test that only contains it."""
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
    return name == "TYPE_CHECKING"


def _absolute_base(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    if node.level == 0:
        return node.module or ""
    parts = module.split(".") if is_package else module.split(".")[:-1]
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, node.module] if node.module else parts)


def _named_in_call(node: ast.Call, path: Path) -> str | None:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name not in _NAMING_CALLS:
        return None
    argument = node.args[0] if node.args else None
    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
        raise InputError(f"{path}:{node.lineno}: {name}() of a computed name hides what it uses; write the name out")
    return argument.value
