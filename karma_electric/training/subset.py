"""A stratified subset of a training set that changes little when the set changes little."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from karma_electric.conversation import Example

Stratum = tuple[str, str]  # category; the source of a patch row ("v8-patch"), else ""

_PATCH_SOURCE = re.compile(r"v.*-patch", re.DOTALL)


def stratified_subset(examples: Sequence[Example], size: int | None, *, seed: int) -> list[Example]:
    """`size` of the examples, in their order; all of them when `size` is None or not smaller than the set.

    Each category has a stratum, and each version's patch rows within it another. While there is room every stratum
    gets a row, and the rest is shared in proportion by largest remainder. Within a stratum the rows come in the order
    of the SHA-256 of seed and id, so that a row added or edited moves at most a few others in or out.
    """
    if size is None or size >= len(examples):
        return list(examples)
    strata: dict[Stratum, list[str]] = defaultdict(list)
    for example in examples:
        strata[_stratum(example)].append(example.id)
    allotment = allot({stratum: len(ids) for stratum, ids in strata.items()}, size)
    chosen: set[str] = set()
    for stratum, ids in strata.items():
        chosen.update(sorted(ids, key=lambda id_: _rank(id_, seed))[: allotment[stratum]])
    return [example for example in examples if example.id in chosen]


def allot(counts: Mapping[Stratum, int], size: int) -> dict[Stratum, int]:
    """How many of `size` places each stratum gets: never more than it has, and together exactly `size`.

    One each while there are enough places; the others by largest remainder of the proportional share, ties by name.
    """
    floor = 1 if size >= len(counts) else 0
    weights = {stratum: count - floor for stratum, count in counts.items()}
    places, total = size - floor * len(counts), sum(weights.values())
    if not places:
        return dict.fromkeys(counts, floor)
    allotment = {stratum: floor + places * weight // total for stratum, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda stratum: (-(places * weights[stratum] % total), stratum))
    for stratum in by_remainder[: size - sum(allotment.values())]:
        allotment[stratum] += 1
    return allotment


def _stratum(example: Example) -> Stratum:
    return example.category, example.source if _PATCH_SOURCE.fullmatch(example.source) else ""


def _rank(id_: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{id_}".encode()).hexdigest()
