"""A text from a later text: the pieces that differ, so that history keeps no second copy of a conversation."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from karma_electric.errors import IntegrityError

# [position in the later text, length there, the earlier text]
Hunk = tuple[int, int, str]

_WORDS = re.compile(r"\s*[^\s\"\\]+|.", re.DOTALL)
_LINES = re.compile(r"(?:[^\\\n]|\\[^n])+(?:\\n|\n)?|.", re.DOTALL)  # a JSON text has the line break as two characters
_MAX_PIECES = 5000  # the matching is quadratic at worst


def reverse_hunks(earlier: str, later: str) -> list[Hunk]:
    """The hunks that make `earlier` of `later`, in the order of their positions."""
    start = shared_start(earlier, later)
    rest = min(len(earlier), len(later)) - start
    end = shared_start(earlier[::-1][:rest], later[::-1][:rest])
    old, new = earlier[start : len(earlier) - end], later[start : len(later) - end]
    if not old and not new:
        return []
    for pattern in (_WORDS, _LINES):
        old_pieces, new_pieces = pattern.findall(old), pattern.findall(new)
        if max(len(old_pieces), len(new_pieces)) <= _MAX_PIECES:
            return _match(old_pieces, new_pieces, start)
    return [(start, len(new), old)]


def shared_start(first: str, second: str) -> int:
    """How many characters the texts have in common at their start."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def apply_hunks(later: str, hunks: Sequence[Sequence[int | str]]) -> str:
    """The earlier text. Raises IntegrityError for hunks that do not fit."""
    parts: list[str] = []
    done = 0
    for hunk in hunks:
        match hunk:
            case (int(position), int(length), str(text)) if done <= position <= position + length <= len(later):
                parts += later[done:position], text
                done = position + length
            case _:
                raise IntegrityError(f"a patch in history does not fit its text of {len(later)} characters")
    return "".join(parts) + later[done:]


def _match(old: list[str], new: list[str], start: int) -> list[Hunk]:
    positions = [start]
    for piece in new:
        positions.append(positions[-1] + len(piece))
    matcher = difflib.SequenceMatcher(None, new, old)
    return [
        (positions[new_start], positions[new_end] - positions[new_start], "".join(old[old_start:old_end]))
        for tag, new_start, new_end, old_start, old_end in matcher.get_opcodes()
        if tag != "equal"
    ]
