"""What a check of the gate is: how it asks about an item, judges the answers, and sums up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from karma_electric.engines.questions import Interview
from karma_electric.gate.intervals import most_failures, rate_interval
from karma_electric.gate.params import GateParams
from karma_electric.gate.results import CheckResult, Evidence
from karma_electric.gate.verdict import rate_verdict
from karma_electric.suites.items import Item, Suites
from karma_electric.wording import counted

Answers = dict[str, Any]  # what the model said, as JSON
Findings = dict[str, Any]  # what followed from it, as JSON
I = TypeVar("I", bound=Item)  # noqa: E741 - the usual name of an item's type


@dataclass(frozen=True, slots=True)
class Prompts:
    """The system prompts that the gate asks with, and what the engine makes of texts.

    `held` is whether it can be held to a form and weighs any text; a server over HTTP cannot. `is_plain` is whether it
    reads a text without control tokens in it.
    """

    persona: str
    evaluator: str
    held: bool = True
    is_plain: Callable[[str], bool] | None = None  # None: nothing is rated


class Check(ABC, Generic[I]):
    """One check. Asking needs a model; judging and summing up need what it said, and can be done again without it."""

    name: ClassVar[str]
    suite: ClassVar[str]
    item_type: ClassVar[type[Item]]
    capped: ClassVar[bool] = False  # whether it asks for capped answers

    def __init__(self, params: GateParams) -> None:
        self.params = params

    def items(self, suites: Suites) -> Sequence[I]:
        """The items of this check."""
        return cast("Sequence[I]", getattr(suites, self.suite))

    @abstractmethod
    def ask(self, item: I, prompts: Prompts) -> Interview[Answers]:
        """The questions about one item; what was answered."""

    @abstractmethod
    def judge(self, item: I, answers: Answers) -> tuple[bool, Findings]:
        """Whether the item passed, and why."""

    @abstractmethod
    def summarise(self, rows: Sequence[Evidence], others: dict[str, list[Evidence]]) -> CheckResult:
        """The check's line. `others` holds the evidence of every check, by name."""

    def evidence(self, item: I, answers: Answers) -> Evidence:
        """One row of evidence."""
        passed, findings = self.judge(item, answers)
        return Evidence(self.name, item.id, item.category, passed, item.model_dump(mode="json"), answers, findings)

    def power(self, n: int) -> str:
        """What `n` items can show: said before the first question."""
        return ""


class RateCheck(Check[I]):
    """A check of the share of items passed."""

    @property
    @abstractmethod
    def bar(self) -> float | None:
        """The least share; None: reported, not judged."""

    def summarise(self, rows: Sequence[Evidence], others: dict[str, list[Evidence]]) -> CheckResult:
        n, passed = len(rows), sum(row.passed for row in rows)
        interval = rate_interval(passed, n, confidence=self.params.confidence)
        verdict, bar = None, self.bar
        if bar is not None:
            floor = self.params.no_failure_lower_bound
            verdict = rate_verdict(passed, n, interval, bar=bar, no_failure_lower_bound=floor)
        words = "reported" if bar is None else "all" if bar >= 1 else f">= {100 * bar:g}%"
        return CheckResult(self.name, words, n, passed, interval, verdict, self.power(n))

    def power(self, n: int) -> str:
        if self.bar is None:
            return "reported, not judged"
        most = most_failures(
            n,
            bar=self.bar,
            no_failure_lower_bound=self.params.no_failure_lower_bound,
            confidence=self.params.confidence,
        )
        words = "that none fails" if self.bar >= 1 else f"{100 * self.bar:g}%"
        if most is None:
            return f"{counted(n, 'item')}: too few to show {words}, whatever they say"
        return f"{counted(n, 'item')} can show {words} only if at most {most} fail"
