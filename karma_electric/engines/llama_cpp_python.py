"""llama.cpp from an installed llama-cpp-python, with that package's own struct layouts.

For where the pinned xllamacpp is not installed. The package declares the C interface of the libraries that it carries,
so any version will do whose structs have the fields that the engine sets. Builds always take the pinned one.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from karma_electric.errors import SetupError

DISTRIBUTION: Final = "llama-cpp-python"
_PACKAGE: Final = "llama_cpp"
_LIBRARIES: Final = ("libllama.so", "libggml-base.so", "libggml.so")
_NEEDED_FIELDS: Final = {
    "llama_model_params": ("n_gpu_layers",),
    "llama_context_params": (
        "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_threads", "n_threads_batch", "flash_attn_type", "cb_eval",
        "cb_eval_user_data", "type_k", "type_v", "kv_unified",
    ),
}  # fmt: skip

Prototypes = Mapping[str, tuple[Any, tuple[Any, ...]]]


def load(prototypes: Prototypes, structs: Mapping[type[ctypes.Structure], str]) -> Any:
    """The functions of `prototypes` as attributes of one object, as those of a ctypes.CDLL.

    `structs` names, for each struct of ours in the prototypes, the package's struct that takes its place. Raises
    SetupError for a package without its libraries, a function that is missing, or a struct that lacks a field.
    """
    package = _import_package()
    theirs = {ours: _struct(package, name) for ours, name in structs.items()}
    libraries = _open_libraries(Path(str(package.__file__)).parent / "lib")
    found = SimpleNamespace()
    for name, (result, arguments) in prototypes.items():
        function = _find(libraries, name)
        function.restype = theirs.get(result, result)
        function.argtypes = tuple(theirs.get(argument, argument) for argument in arguments)
        setattr(found, name, function)
    return found


def check_batch(ours: type[ctypes.Structure]) -> None:
    """Our struct llama_batch must be the package's: it is made here, field by field."""
    theirs = _struct(_import_package(), "llama_batch")

    def layout(struct: Any) -> list[tuple[str, int]]:
        return [(name, getattr(struct, name).offset) for name, *_ in struct._fields_]

    if layout(theirs) != layout(ours) or ctypes.sizeof(theirs) != ctypes.sizeof(ours):
        raise SetupError(f"{DISTRIBUTION}: its llama_batch is another one; install the pinned xllamacpp instead")


def _import_package() -> ModuleType:
    """Imported by its file, because it is not among the packages that a build may depend on."""
    if _PACKAGE in sys.modules:
        return sys.modules[_PACKAGE]
    path = Path(str(importlib.metadata.distribution(DISTRIBUTION).locate_file(f"{_PACKAGE}/__init__.py")))
    spec = importlib.util.spec_from_file_location(_PACKAGE, path, submodule_search_locations=[str(path.parent)])
    if spec is None or spec.loader is None:
        raise SetupError(f"{path}: cannot be imported; install {DISTRIBUTION} again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[_PACKAGE]
        raise SetupError(f"{DISTRIBUTION}: cannot be imported ({error}); install it again") from error
    return module


def _struct(package: ModuleType, name: str) -> Any:
    """A struct of the package, after the fields that the engine sets were found in it."""
    holder = package if hasattr(package, name) else getattr(package, _PACKAGE, package)
    struct = getattr(holder, name, None)
    fields = {field for field, *_ in getattr(struct, "_fields_", ())}
    missing = sorted(set(_NEEDED_FIELDS.get(name, ())) - fields)
    if struct is None or missing:
        what = f"has no {missing[0]}" if struct is not None else "is missing"
        raise SetupError(f"{DISTRIBUTION}: its {name} {what}; install the pinned xllamacpp, or a newer {DISTRIBUTION}")
    return struct


def _open_libraries(folder: Path) -> list[ctypes.CDLL]:
    paths = [folder / name for name in _LIBRARIES if (folder / name).is_file()]
    try:
        return [ctypes.CDLL(str(path)) for path in paths]
    except OSError as error:
        raise SetupError(f"{folder}: cannot be loaded ({error}); install {DISTRIBUTION} again") from error


def _find(libraries: list[ctypes.CDLL], name: str) -> Any:
    for library in libraries:
        try:
            return getattr(library, name)
        except AttributeError:
            continue
    raise SetupError(f"{DISTRIBUTION}: no library of it has {name}; install the pinned xllamacpp instead")
