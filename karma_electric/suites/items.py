"""The gate's items: one file a suite, one schema a kind, everything checked before the first question is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field, field_validator, model_validator

from karma_electric.canonical import read_json_lines
from karma_electric.conversation import parse_text
from karma_electric.errors import InputError, shown
from karma_electric.parameters import Parameters, parse_parameters


def _model_can_be_given(text: str) -> str:
    try:
        return parse_text(text, "the value")
    except InputError as error:
        raise ValueError(str(error)) from error


Text = Annotated[str, AfterValidator(_model_can_be_given)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", description="lower-case words joined by dashes")]


class Item(Parameters):
    """What every item has."""

    id: Name
    suite: Name
    category: Name


class PairItem(Item):
    """Two answers to one message, of which the first must score strictly higher."""

    prompt: Text
    better: Text
    worse: Text

    @model_validator(mode="after")
    def _answers_differ(self) -> PairItem:
        if self.better.strip() == self.worse.strip():
            raise ValueError("better and worse are the same text; no model can prefer one of them")
        return self


class ParaphraseItem(Item):
    """One answer, rated with several wordings of one message."""

    prompt: Text
    paraphrases: list[Text] = Field(min_length=2)
    response: Text

    @model_validator(mode="after")
    def _wordings_differ(self) -> ParaphraseItem:
        wordings = [" ".join(text.split()) for text in (self.prompt, *self.paraphrases)]
        if len(set(wordings)) < len(wordings):
            raise ValueError("two wordings are the same text, which would hide a spread of scores; reword one")
        return self


class BoundaryItem(Item):
    """Messages that ask for sexual content; the answer must not write it."""

    turns: list[Text] = Field(min_length=1)


class RedteamItem(Item):
    """An attack, with regular expressions for what a failed and a passed answer does."""

    difficulty: Literal["easy", "medium", "hard"]
    turns: list[Text] = Field(min_length=1)
    attack_type: str
    expected_behavior: str
    fail_signals: list[str] = Field(min_length=1)
    pass_signals: list[str] = Field(min_length=1)

    @field_validator("fail_signals", "pass_signals")
    @classmethod
    def _signals_compile(cls, signals: list[str]) -> list[str]:
        for signal in signals:
            try:
                matches_nothing_said = re.search(signal, "", re.IGNORECASE)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"expected regular expressions, but {shown(signal)} is none ({error})") from error
            if matches_nothing_said:
                raise ValueError(f"expected signs of what was said, but {shown(signal)} matches an empty answer")
        return signals

    @model_validator(mode="after")
    def _repeating_is_no_pass(self) -> RedteamItem:
        for text in ("\n".join(self.turns), *self.turns):
            for signal in self.pass_signals:
                if found := re.search(signal, text, re.IGNORECASE):
                    raise ValueError(
                        f"pass_signals: {shown(signal)} matches {shown(found[0])} in the turns; "
                        "an answer that repeats the question would pass"
                    )
        return self


I = TypeVar("I", bound=Item)  # noqa: E741 - the usual name of an item's type


class Suites(Parameters):
    """Every suite of a gate."""

    reward_hacking: list[PairItem]
    nourishment: list[PairItem]
    paraphrase: list[ParaphraseItem]
    sexual_boundaries: list[BoundaryItem]
    redteam: list[RedteamItem]


def read_suites(folder: Path) -> Suites:
    """The suites in `folder`, one `<suite>.jsonl` each.

    A missing suite, a bad row, an id that stands twice, or a file that no check would read is an InputError.
    """
    seen: dict[str, str] = {}
    suites = Suites(
        reward_hacking=_read_suite(folder / "reward-hacking.jsonl", PairItem, seen),
        nourishment=_read_suite(folder / "nourishment.jsonl", PairItem, seen),
        paraphrase=_read_suite(folder / "paraphrase.jsonl", ParaphraseItem, seen),
        sexual_boundaries=_read_suite(folder / "sexual-boundaries.jsonl", BoundaryItem, seen),
        redteam=_read_suite(folder / "redteam.jsonl", RedteamItem, seen),
    )
    known = {f"{name.replace('_', '-')}.jsonl" for name in Suites.model_fields}
    for path in sorted(folder.glob("*.jsonl")):
        if path.name not in known:
            raise InputError(f"{path}: no check reads this suite; expected {', '.join(sorted(known))}")
    return suites


def stratified_subset(items: list[I], size: int | None) -> list[I]:
    """The first items of every category in turn, until there are `size`; all of them when size is None."""
    if size is None or size >= len(items):
        return items
    by_category: dict[str, list[I]] = {}
    for item in items:
        by_category.setdefault(item.category, []).append(item)
    chosen: list[I] = []
    queues = list(by_category.values())
    while len(chosen) < size:
        for queue in queues:
            if queue and len(chosen) < size:
                chosen.append(queue.pop(0))
    return chosen


def _read_suite(path: Path, model: type[I], seen: dict[str, str]) -> list[I]:
    items: list[I] = []
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        item = parse_parameters(row, model, where=where)
        if item.suite != path.stem:
            raise InputError(f"{where}: suite is {shown(item.suite)}, expected {path.stem!r}")
        if item.id in seen:
            raise InputError(f"{where}: the id {shown(item.id)} stands already at {seen[item.id]}")
        seen[item.id] = where
        items.append(item)
    if not items:
        raise InputError(f"{path}: holds no items; a check without items shows nothing")
    return items
