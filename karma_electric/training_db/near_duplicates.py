"""Rows that say nearly the same: MinHash finds the candidates, and their real likeness decides.

Two texts are alike by the share of runs of three words that both hold (Jaccard). Texts that were written apart share a
few percent; a copy in which every eighth word was changed shares 45%. The cost grows with the number of rows, not with
its square: rows are compared only when three of their 255 minima agree in one of 85 places (locality-sensitive
hashing), which finds 99% of the pairs at a likeness of 0.4 and nearly all above.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy
from datasketch import MinHash, MinHashLSH

from karma_electric.training_db.texts import words

GRAM_WORDS = 3
LEAST_LIKENESS = 0.4
_PLACES, _MINIMA_IN_A_PLACE = 85, 3
_MINIMA = _PLACES * _MINIMA_IN_A_PLACE

_Hashes = numpy.ndarray[Any, numpy.dtype[numpy.uint32]]


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of which each is like another one of the group, in the order given. `likeness` is the least that joined."""

    ids: tuple[str, ...]
    likeness: float


def near_duplicates(
    texts: Iterable[tuple[str, str]],
    *,
    least_likeness: float = LEAST_LIKENESS,
    report: Callable[[int], None] | None = None,
) -> list[Group]:
    """Groups of (id, text) that are alike, in the order of their first row. An id may stand twice: that is no likeness.

    The result follows from the texts and their order alone. `report` is told the number of rows that were read.
    """
    finder = _Finder(least_likeness)
    for count, (id_, text) in enumerate(texts, start=1):
        finder.add(id_, text)
        if report is not None:
            report(count)
    return finder.groups()


class _Finder:
    def __init__(self, least_likeness: float) -> None:
        self._least = least_likeness
        self._index = MinHashLSH(num_perm=_MINIMA, params=(_PLACES, _MINIMA_IN_A_PLACE))
        self._empty = MinHash(num_perm=_MINIMA, seed=1, hashfunc=int, scheme="affine32")
        self._ids: list[str] = []
        self._hashes: list[_Hashes] = []
        self._group_of: list[int] = []  # the first row of each row's group, by number
        self._likeness: dict[int, float] = {}

    def add(self, id_: str, text: str) -> None:
        hashes = _hashes(words(text))
        if not hashes:
            return
        number = len(self._ids)
        own = numpy.array(hashes, dtype=numpy.uint32)
        minhash = self._empty.copy()
        minhash.update_batch(hashes)
        self._ids.append(id_)
        self._hashes.append(own)
        self._group_of.append(number)
        for other in sorted(self._index.query(minhash)):
            if self._first(other) != self._first(number) and self._ids[other] != id_:
                likeness = _jaccard(own, self._hashes[other])
                if likeness >= self._least:
                    self._join(number, other, likeness)
        self._index.insert(number, minhash, check_duplication=False)

    def groups(self) -> list[Group]:
        members: dict[int, list[str]] = {}
        for number, id_ in enumerate(self._ids):
            members.setdefault(self._first(number), []).append(id_)
        return [
            Group(tuple(dict.fromkeys(ids)), self._likeness[first])
            for first, ids in members.items()
            if first in self._likeness
        ]

    def _first(self, number: int) -> int:
        while self._group_of[number] != number:
            self._group_of[number] = self._group_of[self._group_of[number]]
            number = self._group_of[number]
        return number

    def _join(self, number: int, other: int, likeness: float) -> None:
        first, second = sorted((self._first(number), self._first(other)))
        known = [self._likeness.pop(group, 1.0) for group in (first, second)]
        self._group_of[second] = first
        self._likeness[first] = min(likeness, *known)


def _hashes(found: list[str]) -> list[int]:
    """Every run of words as 32 bits, sorted; a text of fewer words is one run."""
    size = min(GRAM_WORDS, len(found))
    if not size:
        return []
    runs = zip(*(found[start:] for start in range(size)), strict=False)
    return sorted({zlib.crc32(" ".join(run).encode("utf-8")) for run in runs})


def _jaccard(left: _Hashes, right: _Hashes) -> float:
    common = len(numpy.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)
