"""Gate items that are in the training data, or nearly: a release must not be tested with what it was taught.

Texts are compared as words, without case, accents and punctuation. An item's text is in a turn when one of three
things holds:

- copied: they share 30% of the shorter one's runs of three words, at least three of them, with three telling words.
  Rows and items that were written apart share 20% at most (two runs), a copy in which every fifth word was changed
  about half;
- reworded: half of the text's telling words, and at least five, stand in one stretch of the turn. Words count by their
  first six letters, so that endings don't matter; common and short words don't tell;
- the same words, for a text or turn that is too short for runs.

A translation, or a rewording that keeps few words, is not seen: such rows are for a person to find.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from karma_electric.canonical import read_json_lines
from karma_electric.errors import InputError, shown
from karma_electric.training_db.texts import Grams, grams, words

GRAM_WORDS = 3
LEAST_COPIED_SHARE = 0.3
LEAST_COPIED_GRAMS = 3
LEAST_COPIED_WORDS = 3  # telling ones, so that a frame such as "how do I talk to" is no copy
LEAST_WORDS_OF_A_COPY = 8  # a shorter turn, such as a greeting, is inside many texts
LEAST_REWORDED_PERCENT = 50
LEAST_REWORDED_WORDS = 5
STEM_LETTERS = 6
LEAST_STRETCH_WORDS = 40  # a stretch is three times the text's words, or this

# What says how an item is judged, and is never shown to a model. Every other text of an item counts.
JUDGING_KEYS = frozenset(
    {"id", "suite", "category", "difficulty", "attack_type", "expected_behavior", "fail_signals", "pass_signals"}
)

Kind = Literal["the same words", "copied", "reworded"]


@dataclass(frozen=True, slots=True)
class GateText:
    """One text of a gate item, such as its prompt: the item's id, file:line, and the key that it stands under."""

    item: str
    where: str
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Hit:
    """A gate text in a row. `share` is how much of it, or of the shorter text, is shared; `shared` shows some."""

    gate_text: GateText
    row: str
    row_where: str
    kind: Kind
    share: float
    shared: str

    def __str__(self) -> str:
        return f"{self.row_where}: {shown(self.row)} {self.described()}"

    def described(self) -> str:
        """What the row holds, for a line that names the row already."""
        text = self.gate_text
        return (
            f"holds {text.key} of the gate item {shown(text.item)} ({text.where}): {self.kind}, {self.share:.0%} "
            f"({self.shared[:120]})"
        )


@dataclass(frozen=True, slots=True)
class _Prepared:
    source: GateText
    words: tuple[str, ...]
    grams: Grams
    stems: frozenset[str]

    @property
    def least_stems(self) -> int:
        """How many telling words a turn must hold; more than there are when the text has too few to tell."""
        return max(LEAST_REWORDED_WORDS, -(-LEAST_REWORDED_PERCENT * len(self.stems) // 100))


def read_gate_texts(folder: Path) -> list[GateText]:
    """Every text of every item in the `.jsonl` files of `folder`, but for what only judges use.

    Raises InputError for a missing folder, one without items, or an item without an id or a text.
    """
    files = sorted(folder.glob("*.jsonl"))
    texts = [text for path in files for number, row in read_json_lines(path) for text in _texts(row, path, number)]
    if not texts:
        raise InputError(f"{folder}: holds no gate items (*.jsonl), so nothing can be compared; correct the path")
    return texts


def _texts(row: dict[str, Any], path: Path, number: int) -> list[GateText]:
    where = f"{path}:{number}"
    item = row.get("id")
    if not isinstance(item, str) or not item:
        raise InputError(f"{where}: id is {shown(item)}, expected the item's name")
    found = [
        GateText(item, where, key, text)
        for key, value in row.items()
        if key not in JUDGING_KEYS
        for text in _strings(value)
        if words(text)
    ]
    if not found:
        raise InputError(f"{where}: the item {shown(item)} has no text; expected a prompt or turns")
    return found


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


class GateIndex:
    """Gate texts, ready to be looked up. The work for a row does not grow with the number of rows."""

    def __init__(self, texts: Iterable[GateText]) -> None:
        self._texts = [_prepare(text) for text in texts]
        self._by_words: dict[tuple[str, ...], int] = {}
        self._by_gram: dict[tuple[str, ...], list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for index, text in enumerate(self._texts):
            self._by_words.setdefault(text.words, index)
            for gram in text.grams:
                self._by_gram[gram].append(index)
            for stem in _sieve(text):
                self._by_stem[stem].append(index)

    def hits(self, turns: Sequence[str], *, row: str, where: str) -> Iterator[Hit]:
        """Every gate text that is in the turns of a row, once for each text, in the order of the texts."""
        found: dict[int, Hit] = {}
        for turn in turns:
            spoken = words(turn)
            for index, kind, share, shared in (
                *self._same(spoken),
                *self._copied(spoken),
                *self._reworded(spoken),
            ):
                found.setdefault(index, Hit(self._texts[index].source, row, where, kind, share, shared))
        yield from (found[index] for index in sorted(found))

    def _same(self, spoken: list[str]) -> Iterator[tuple[int, Kind, float, str]]:
        index = self._by_words.get(tuple(spoken))
        if index is not None:
            yield index, "the same words", 1.0, " ".join(spoken)

    def _copied(self, spoken: list[str]) -> Iterator[tuple[int, Kind, float, str]]:
        own = grams(spoken, GRAM_WORDS)
        shared: dict[int, list[tuple[str, ...]]] = defaultdict(list)
        for gram in own:
            for index in self._by_gram.get(gram, ()):
                shared[index].append(gram)
        for index, common in sorted(shared.items()):
            shorter = len(self._texts[index].grams)
            if len(spoken) >= LEAST_WORDS_OF_A_COPY:
                shorter = min(shorter, len(own))
            share = len(common) / shorter
            telling = {stem for gram in common for word in gram if (stem := _stem(word))}
            enough = len(telling) >= min(LEAST_COPIED_WORDS, len(self._texts[index].stems))
            if len(common) >= LEAST_COPIED_GRAMS and share >= LEAST_COPIED_SHARE and enough:
                yield index, "copied", share, " / ".join(" ".join(gram) for gram in sorted(common))

    def _reworded(self, spoken: list[str]) -> Iterator[tuple[int, Kind, float, str]]:
        stems = [_stem(word) for word in spoken]
        candidates = {index for stem in set(stems) for index in self._by_stem.get(stem, ())}
        for index in sorted(candidates):
            text = self._texts[index]
            stretch = max(LEAST_STRETCH_WORDS, 3 * len(text.words))
            together = _most_in_a_stretch(stems, text.stems, stretch)
            if len(together) >= text.least_stems:
                yield index, "reworded", len(together) / len(text.stems), " ".join(sorted(together))


def _prepare(text: GateText) -> _Prepared:
    found = words(text.text)
    telling = (_stem(word) for word in found)
    return _Prepared(text, tuple(found), grams(found, GRAM_WORDS), frozenset(stem for stem in telling if stem))


def _sieve(text: _Prepared) -> list[str]:
    """Words of which a turn must hold one, or it can't hold enough of all: as many as may be missing, and one more.

    The longest are taken, because they are the rarest.
    """
    if len(text.stems) < text.least_stems:
        return []
    by_length = sorted(text.stems, key=lambda stem: (-len(stem), stem))
    return by_length[: len(text.stems) - text.least_stems + 1]


def _most_in_a_stretch(stems: list[str], wanted: frozenset[str], stretch: int) -> set[str]:
    """The most of `wanted` that stand within `stretch` words of each other."""
    places = [(place, stem) for place, stem in enumerate(stems) if stem in wanted]
    best: set[str] = set()
    inside: Counter[str] = Counter()
    start = 0
    for place, stem in places:
        inside[stem] += 1
        while place - places[start][0] >= stretch:
            inside[places[start][1]] -= 1
            inside += Counter()  # drops the zeros
            start += 1
        if len(inside) > len(best):
            best = set(inside)
    return best


def _stem(word: str) -> str:
    """The letters that a word counts by; none for a common or short word."""
    return "" if len(word) < 4 or word in _COMMON else word[:STEM_LETTERS]


_COMMON = frozenset(
    re.findall(
        r"\w+", resources.files("karma_electric.training_db").joinpath("common-words.txt").read_text("utf-8").casefold()
    )
)
