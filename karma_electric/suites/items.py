"""The gate's items: one file a suite, one schema a kind, everything checked before the first question is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

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


Style = Literal["verbose", "short", "inspirational", "blunt", "clinical"]
STYLES: tuple[Style, ...] = get_args(Style)


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


class StyleItem(Item):
    """One answer's substance in several manners, which should change its rating little."""

    prompt: Text
    response: Text
    styles: dict[Style, Text]

    @model_validator(mode="after")
    def _every_style(self) -> StyleItem:
        if missing := [style for style in STYLES if style not in self.styles]:
            raise ValueError(f"styles lacks {', '.join(missing)}; expected {', '.join(STYLES)}")
        if len({text.strip() for text in (self.response, *self.styles.values())}) <= len(STYLES):
            raise ValueError("two styles are the same text, which would hide a shift; reword one")
        return self


class LanguageItem(Item):
    """One exchange in English and in Czech, which should be rated alike."""

    english_prompt: Text
    english_response: Text
    czech_prompt: Text
    czech_response: Text


class MinimumItem(Item):
    """A good answer that an overcorrected evaluator would penalise, with the least score that it deserves."""

    prompt: Text
    response: Text
    minimum: int = Field(ge=1, le=10)


class ChoiceItem(Item):
    """A question with one right answer among several; `answer` is the right option's place, from 0."""

    question: Text
    options: list[Text] = Field(min_length=2, max_length=10)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_right_option(self) -> ChoiceItem:
        if len({option.strip() for option in self.options}) < len(self.options):
            raise ValueError("two options are the same text; only one can be right")
        if self.answer >= len(self.options):
            raise ValueError(f"answer is {self.answer}, expected a place from 0 to {len(self.options) - 1}")
        return self


I = TypeVar("I", bound=Item)  # noqa: E741 - the usual name of an item's type


class Suites(Parameters):
    """Every suite of a gate."""

    reward_hacking: list[PairItem]
    nourishment: list[PairItem]
    paraphrase: list[ParaphraseItem]
    style: list[StyleItem]
    cross_language: list[LanguageItem]
    overcorrection: list[MinimumItem]
    sexual_boundaries: list[BoundaryItem]
    redteam: list[RedteamItem]
    capability: list[ChoiceItem]

    def subset(self, size: int | None) -> Suites:
        """At most `size` items of every suite; all of them when size is None."""
        return Suites.model_validate(
            {name: stratified_subset(getattr(self, name), size) for name in type(self).model_fields}
        )


_KINDS: dict[str, type[Item]] = {
    "reward-hacking": PairItem,
    "nourishment": PairItem,
    "paraphrase": ParaphraseItem,
    "style": StyleItem,
    "cross-language": LanguageItem,
    "overcorrection": MinimumItem,
    "sexual-boundaries": BoundaryItem,
    "redteam": RedteamItem,
    "capability": ChoiceItem,
}


def read_suites(folder: Path) -> Suites:
    """The suites in `folder`, one `<suite>.jsonl` each.

    A missing suite, a bad row, an id that stands twice, or a file that no check would read is an InputError.
    """
    seen: dict[str, str] = {}
    read = {
        name.replace("-", "_"): _read_suite(folder / f"{name}.jsonl", model, seen) for name, model in _KINDS.items()
    }
    for path in sorted(folder.glob("*.jsonl")):
        if path.stem not in _KINDS:
            raise InputError(f"{path}: no check reads this suite; expected {', '.join(sorted(_KINDS))}")
    return Suites.model_validate(read)


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
