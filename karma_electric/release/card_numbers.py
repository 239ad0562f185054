"""Values that know where they are from, so that every number of a card is bound to a key of a file.

A template is given `Fact`s. What it prints of them is marked while it is rendered; a digit outside of the marks is a
number that nobody can recompute, and fails.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from karma_electric.errors import InputError
from karma_electric.wording import counted

# Words with digits that are names and no numbers; they may stand in the template.
NAMES = ("NF4", "SHA-256", "https://llama.meta.com/llama3_1/use-policy")

_OPEN, _MIDDLE, _CLOSE = "\ue000", "\ue001", "\ue002"
_MARKED = re.compile(f"{_OPEN}([0-9]+){_MIDDLE}([^{_OPEN}{_MIDDLE}{_CLOSE}]*){_CLOSE}")
_NAME = re.compile("|".join(re.escape(name) for name in NAMES))


class Fact:
    """A value of a file and its key. `fact.name` and `fact[name]` are what it holds; a missing key is an InputError."""

    __slots__ = ("_file", "_key", "_value")

    def __init__(self, value: Any, file: str, key: str = "") -> None:
        self._value, self._file, self._key = value, file, key

    def __getitem__(self, name: object) -> Fact:
        plain = name._value if isinstance(name, Fact) else name
        key = f"{self._key}.{plain}".removeprefix(".")
        try:
            return Fact(self._value[plain], self._file, key)
        except (KeyError, IndexError, TypeError):
            raise InputError(f"{self._file}: {key} is missing, though the card states it; build it again") from None

    def __str__(self) -> str:
        return str(self._value)

    def __eq__(self, other: object) -> bool:
        return bool(self._value == (other._value if isinstance(other, Fact) else other))

    def __hash__(self) -> int:
        return hash(str(self._value))

    def __bool__(self) -> bool:
        return bool(self._value)


@dataclass(frozen=True, slots=True)
class Binding:
    """A printed value: its place in the card (line and column from 1), and the file and key that it is from."""

    text: str
    line: int
    column: int
    file: str
    key: str


@dataclass(frozen=True, slots=True)
class _Shown:
    text: str
    file: str
    key: str


class Marker:
    """Filters and functions for one rendering, and the record of what was printed."""

    def __init__(self) -> None:
        self._printed: list[_Shown] = []

    def finalize(self, value: Any) -> str:
        """What the template prints for `value`: Jinja calls it for every expression."""
        if isinstance(value, Fact):
            value = _Shown(_cell(_plain(value)), value._file, value._key)
        if isinstance(value, _Shown):
            if any(sign in value.text for sign in (_OPEN, _MIDDLE, _CLOSE)):
                raise InputError(f"{value.file}: {value.key} holds a sign for private use; write it otherwise")
            self._printed.append(value)
            return f"{_OPEN}{len(self._printed) - 1}{_MIDDLE}{value.text}{_CLOSE}"
        return str(value)

    def read(self, marked: str, where: str) -> tuple[str, list[Binding]]:
        """The text without marks, and what is bound. Raises InputError for a number outside of the marks."""
        parts: list[str] = []
        bindings: list[Binding] = []
        position, line, column = 0, 1, 1
        for match in [*_MARKED.finditer(marked), None]:
            literal = marked[position : match.start() if match else len(marked)]
            _refuse_digits(literal, line, where)
            line, column = _advance(literal, line, column)
            parts.append(literal)
            if match is None:
                break
            shown = self._printed[int(match[1])]
            bindings.append(Binding(shown.text, line, column, shown.file, shown.key))
            parts.append(shown.text)
            line, column = _advance(shown.text, line, column)
            position = match.end()
        return "".join(parts), bindings


def each(fact: Fact) -> Iterator[tuple[Fact, Fact]]:
    """(name, value) of what a fact holds. A name is a fact, too: it is the key, or of a list the place from 0."""
    value = fact._value
    names: Any = value if isinstance(value, Mapping) else range(len(value))
    for name in names:
        held = fact[name]
        yield Fact(name, held._file, held._key), held


def is_known(fact: Fact) -> bool:
    """Whether a value is not null."""
    return fact._value is not None


def is_held(name: str, fact: Fact) -> bool:
    """Whether a fact has a key of this name."""
    return name in fact._value


def formatted(write: Callable[..., str]) -> Callable[..., _Shown]:
    """A filter that prints a fact by `write`, which is also given the filter's own arguments."""

    def show(fact: Fact, *words: str) -> _Shown:
        value = _plain(fact)
        try:
            return _Shown(write(value, *words), fact._file, fact._key)
        except (TypeError, ValueError) as error:
            raise InputError(f"{fact._file}: {fact._key} is {value!r}, which the card cannot show ({error})") from None

    return show


FILTERS: dict[str, Callable[..., _Shown]] = {
    "percent": formatted(lambda share: f"{100 * float(share):.1f}".removesuffix(".0") + "%"),
    "bytes": formatted(lambda size: _bytes(int(size))),
    "points": formatted(lambda value: f"{float(value):.2f}"),
    "count": formatted(lambda number: f"{int(number):,}"),
    "counted": formatted(lambda number, noun: counted(int(number), noun)),
    "held": formatted(lambda value: f"{len(value):,}"),
    "words": formatted(lambda name: str(name).replace("_", " ")),
    "json": formatted(lambda value: json.dumps(value, ensure_ascii=False)),  # JSON is YAML, too
}


def _plain(fact: object) -> Any:
    if not isinstance(fact, Fact):
        raise InputError(f"the card's template prints {fact!r}, which is of no file; print a fact")
    return fact._value


def _cell(value: Any) -> str:
    """One line that ends no cell of a table."""
    if isinstance(value, Mapping | list):
        raise InputError(f"the card's template prints a whole {type(value).__name__}; print what it holds")
    return " ".join(str(value).split()).replace("|", "\\|")


def _bytes(size: int) -> str:
    for unit, bytes_in_it in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_in_it:
            return f"{size / bytes_in_it:.1f} {unit}"
    return f"{size} bytes"


def _refuse_digits(literal: str, line: int, where: str) -> None:
    bare = _NAME.sub(lambda match: "x" * len(match[0]), literal)
    if found := re.search(r"[^\s]*\d[^\s]*", bare):
        at = line + bare[: found.start()].count("\n")
        raise InputError(
            f"{where}: line {at} of the card: {found[0]!r} is a number of no file; print it from one, "
            "or write it as a word"
        )


def _advance(text: str, line: int, column: int) -> tuple[int, int]:
    before, newline, last = text.rpartition("\n")
    if not newline:
        return line, column + len(text)
    return line + before.count("\n") + 1, len(last) + 1
