"""How varied a corpus is written: distinct n-grams by category, and answers that are built from one template."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from karma_electric.suites.evaluation import DIMENSIONS, OVERALL, RED_FLAGS
from karma_electric.training_db.texts import words

STRETCH_WORDS = 1000  # distinct n-grams fall with length, so they are counted in stretches of one length
OPENING_WORDS = 4
ROWS_WITH_ONE_OPENING = 2  # or half a percent of the rows, when that is more
LEAST_LIKENESS_OF_A_TEMPLATE = 0.3
LEAST_WORDS_OF_A_TEMPLATE = 8

_NAMES = "|".join(map(re.escape, (*DIMENSIONS, RED_FLAGS, OVERALL)))
_FORM = re.compile(rf"^(?:{_NAMES}): *(?:\d+/10 - *)?", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Diversity:
    """Of one category: words of all answers, and the mean share of distinct runs of two and of three words in its
    stretches of STRETCH_WORDS words (one shorter stretch when there are fewer)."""

    words: int
    distinct_2: float
    distinct_3: float


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says in one row, without the evaluator's form, which is the same in every rating."""

    id: str
    where: str
    category: str
    text: str


def answer_text(turns: Sequence[str]) -> str:
    """The answers among alternating turns, without the form of a rating."""
    return "\n".join(_FORM.sub("", turn) for turn in turns[1::2])


def measure_diversity(answers: Iterable[Answer]) -> dict[str, Diversity]:
    """Category -> how varied its answers are, categories in alphabetical order."""
    by_category: dict[str, _Stretches] = defaultdict(_Stretches)
    for answer in answers:
        by_category[answer.category].add(words(answer.text))
    return {name: stretches.measured() for name, stretches in sorted(by_category.items())}


class _Stretches:
    def __init__(self) -> None:
        self._waiting: list[str] = []
        self._words = 0
        self._shares: list[tuple[float, float]] = []

    def add(self, found: list[str]) -> None:
        self._words += len(found)
        self._waiting += found
        while len(self._waiting) >= STRETCH_WORDS:
            self._count(self._waiting[:STRETCH_WORDS])
            del self._waiting[:STRETCH_WORDS]

    def _count(self, stretch: list[str]) -> None:
        two, three = (_distinct(stretch, size) for size in (2, 3))
        self._shares.append((two, three))

    def measured(self) -> Diversity:
        if not self._shares:
            self._count(self._waiting)
        two, three = (sum(column) / len(self._shares) for column in zip(*self._shares, strict=True))
        return Diversity(self._words, two, three)


def _distinct(found: list[str], size: int) -> float:
    runs = list(zip(*(found[start:] for start in range(size)), strict=False))
    return len(set(runs)) / len(runs) if runs else 1.0


def find_templates(answers: Sequence[Answer], flags: Mapping[str, str]) -> dict[str, str]:
    """Id -> why it counts as a template: its flag in the database, an answer built like others, or their opening."""
    from karma_electric.training_db.near_duplicates import near_duplicates

    reasons = {answer.id: f"flagged {flags[answer.id]}" for answer in answers if answer.id in flags}
    long_enough = [(a.id, a.text) for a in answers if len(words(a.text)) >= LEAST_WORDS_OF_A_TEMPLATE]
    for group in near_duplicates(long_enough, least_likeness=LEAST_LIKENESS_OF_A_TEMPLATE):
        for id_ in group.ids:
            other = group.ids[1] if id_ == group.ids[0] else group.ids[0]
            reasons.setdefault(id_, f"its answer is built like that of {other}")
    for opening, ids in _shared_openings(answers).items():
        for id_ in ids:
            reasons.setdefault(id_, f"{len(ids)} answers open with {' '.join(opening)!r}")
    return reasons


def _shared_openings(answers: Sequence[Answer]) -> dict[tuple[str, ...], list[str]]:
    """Opening words -> the rows that share them, where they are more than chance gives."""
    by_opening: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for answer in answers:
        opening = tuple(words(answer.text[:200])[:OPENING_WORDS])
        if len(opening) == OPENING_WORDS:
            by_opening[opening][answer.id] = None
    most = max(ROWS_WITH_ONE_OPENING, len(answers) // 200)
    return {opening: list(ids) for opening, ids in by_opening.items() if len(ids) > most}
