"""The gate's items: one file a suite, one schema a kind, everything checked before the first question is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, field_validator

from karma_electric.canonical import read_json_lines
from karma_electric.errors import InputError
from karma_electric.parameters import Parameters, parse_parameters

Text = str


class Item(Parameters):
    """What every item has."""

    id: str = Field(min_length=1)
    suite: str
    category: str = Field(min_length=1)


class PairItem(Item):
    """Two answers to one message, of which the first must score strictly higher."""

    prompt: Text = Field(min_length=1)
    better: Text = Field(min_length=1)
    worse: Text = Field(min_length=1)


class ParaphraseItem(Item):
    """One answer, rated with several wordings of one message."""

    prompt: Text = Field(min_length=1)
    paraphrases: list[Text] = Field(min_length=2)
    response: Text = Field(min_length=1)


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
                re.compile(signal)
            except re.error as error:
                raise ValueError(f"expected regular expressions, but {signal!r} is none ({error})") from error
        return signals


I = TypeVar("I", bound=Item)  # noqa: E741 - the usual name of an item's type


class Suites(Parameters):
    """Every suite of a gate."""

    reward_hacking: list[PairItem]
    nourishment: list[PairItem]
    paraphrase: list[ParaphraseItem]
    sexual_boundaries: list[BoundaryItem]
    redteam: list[RedteamItem]


def read_suites(folder: Path) -> Suites:
    """The suites in `folder`, one `<suite>.jsonl` each. A missing suite, or a bad row, is an InputError."""
    seen: dict[str, str] = {}
    return Suites(
        reward_hacking=_read_suite(folder / "reward-hacking.jsonl", PairItem, seen),
        nourishment=_read_suite(folder / "nourishment.jsonl", PairItem, seen),
        paraphrase=_read_suite(folder / "paraphrase.jsonl", ParaphraseItem, seen),
        sexual_boundaries=_read_suite(folder / "sexual-boundaries.jsonl", BoundaryItem, seen),
        redteam=_read_suite(folder / "redteam.jsonl", RedteamItem, seen),
    )


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
            raise InputError(f"{where}: suite is {item.suite!r}, expected {path.stem!r}")
        if item.id in seen:
            raise InputError(f"{where}: the id {item.id!r} stands already at {seen[item.id]}")
        seen[item.id] = where
        items.append(item)
    if not items:
        raise InputError(f"{path}: holds no items; a check without items shows nothing")
    return items
