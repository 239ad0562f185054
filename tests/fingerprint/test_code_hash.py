from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.fingerprint.code_hash import code_sha256
from tests.fingerprint.trees import ROOT

SOURCE = '''"""What it does."""

import os
from pathlib import Path, PurePath


class Box:
    """A box."""

    SIZE = 3

    def open(self, way: str = "up") -> int:
        """Open it."""
        if way == "up":
            return os.getpid() + self.SIZE
        return -1


async def wait() -> None:
    """Wait."""
'''

SAME = {
    "a comment": ("    SIZE = 3\n", "    # In litres.\n    SIZE = 3  # not in gallons\n"),
    "blank lines": ("import os\n", "\n\nimport os\n\n\n"),
    "another module docstring": ('"""What it does."""', '"""What it really does."""'),
    "no module docstring": ('"""What it does."""\n', ""),
    "another class docstring": ('"""A box."""', "'''A small\n    box.'''"),
    "no method docstring": ('        """Open it."""\n', ""),
    "another docstring of a coroutine": ('"""Wait."""', '"""Wait long."""'),
    "imports over several lines": ("import Path, PurePath", "import (\n    Path,\n    PurePath,\n)"),
    "quotes": ('way == "up"', "way == 'up'"),
    "brackets": (
        "os.getpid() + self.SIZE",
        "(\n                os.getpid()\n                + self.SIZE\n            )",
    ),
    "spaces": ("SIZE = 3", "SIZE=3"),
    "a spelling of a number": ("SIZE = 3", "SIZE = 0x3"),
}
OTHER = {
    "a number": ("SIZE = 3", "SIZE = 4"),
    "a type of number": ("SIZE = 3", "SIZE = 3.0"),
    "a text": ('way == "up"', 'way == "UP"'),
    "a default": ('way: str = "up"', 'way: str = "down"'),
    "a sign": ("return -1", "return 1"),
    "an operator": ("os.getpid() + self", "os.getpid() - self"),
    "a name": ("def open", "def shut"),
    "a text that is no docstring": ('        """Open it."""\n', '        way = """Open it."""\n'),
    "a text after the docstring": ('"""Open it."""\n', '"""Open it."""\n        "Open it."\n'),
    "an import": ("import os\n", "import os, sys\n"),
    "a decorator": ("    def open", "    @staticmethod\n    def open"),
}


def edited(folder: Path, change: tuple[str, str]) -> Path:
    old, new = change
    assert SOURCE.count(old) == 1
    file = folder / "edited.py"
    file.write_text(SOURCE.replace(old, new))
    return file


def original(folder: Path) -> Path:
    file = folder / "original.py"
    file.write_text(SOURCE)
    return file


@pytest.mark.parametrize("change", SAME.values(), ids=SAME.keys())
def test_what_does_nothing_does_not_count(tmp_path: Path, change: tuple[str, str]) -> None:
    assert code_sha256(edited(tmp_path, change)) == code_sha256(original(tmp_path))


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER.keys())
def test_what_does_something_counts(tmp_path: Path, change: tuple[str, str]) -> None:
    assert code_sha256(edited(tmp_path, change)) != code_sha256(original(tmp_path))


def with_comments(source: str) -> str:
    """The source with a comment behind every line that may have one."""
    ends = {t.start for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.NEWLINE}
    lines = source.splitlines(keepends=True)
    for row, column in ends:
        lines[row - 1] = lines[row - 1][:column] + "  # a comment\n\n"
    return "".join(lines)


def test_comments_and_layout_of_our_own_files_do_not_count(tmp_path: Path) -> None:
    files = sorted((ROOT / "karma_electric").rglob("*.py"))
    assert len(files) > 20
    for file in files:
        source = file.read_text("utf-8")
        for variant in (with_comments(source), ast.unparse(ast.parse(source))):
            (tmp_path / "variant.py").write_text(variant, "utf-8")
            assert code_sha256(tmp_path / "variant.py") == code_sha256(file), file


@given(first=st.integers(), second=st.integers())
def test_two_constants_are_told_apart(first: int, second: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    hashes = []
    for number in (first, second):
        file = tmp_path_factory.getbasetemp() / "constant.py"
        file.write_text(f"N = {number}\n")
        hashes.append(code_sha256(file))
    assert (hashes[0] == hashes[1]) == (first == second)
