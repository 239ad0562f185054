"""Words that follow from numbers."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 row`, `2 rows`, `1,000 rows`: a count and what it counts, whose plural ends in s."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
