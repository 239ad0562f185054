"""Does the cap cost ability? Short questions with options, weighed with the cap and without it."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import replace

from karma_electric.canonical import rounded
from karma_electric.conversation import Message
from karma_electric.engines.questions import Interview, Weigh
from karma_electric.errors import IntegrityError
from karma_electric.gate.checks import Answers, Findings, Prompts, RateCheck
from karma_electric.gate.intervals import paired_rate_interval
from karma_electric.gate.results import CheckResult, Evidence
from karma_electric.gate.verdict import not_worse_verdict
from karma_electric.suites.items import ChoiceItem
from karma_electric.wording import counted


class CapabilityCheck(RateCheck[ChoiceItem]):
    """The share of questions whose right option is the likeliest. Uncapped, it is reported.

    The log-probability of an option is the sum over its tokens; the persona's prompt stands before the question, as it
    does when the model is used. A server weighs the first token of an answer only, so it is asked for a letter.
    """

    name, suite, item_type = "capability_uncapped", "capability", ChoiceItem

    @property
    def bar(self) -> float | None:
        return None

    def ask(self, item: ChoiceItem, prompts: Prompts) -> Interview[Answers]:
        question, options = item.question, tuple(item.options)
        if not prompts.held:
            question, options = _lettered(item)
        messages = (Message(role="system", content=prompts.persona), Message(role="user", content=question))
        weights: list[float] = yield Weigh(messages, options, capped=self.capped)
        if len(weights) != len(item.options):
            raise IntegrityError(f"{item.id}: {len(weights)} log-probabilities for {len(item.options)} options")
        return {"log_probabilities": [rounded(weight) for weight in weights]}

    def judge(self, item: ChoiceItem, answers: Answers) -> tuple[bool, Findings]:
        weights = answers["log_probabilities"]
        best = max(weights)
        chosen = [place for place, weight in enumerate(weights) if weight == best]
        return chosen == [item.answer], {"chosen": item.options[chosen[0]]}  # of equal options, none is chosen


class CapabilityCappedCheck(CapabilityCheck):
    """The same with the cap: it may cost at most the margin."""

    name, capped = "capability_capped", True

    def power(self, n: int) -> str:
        return f"{counted(n, 'item')}; the paired interval of the difference decides"

    def summarise(self, rows: Sequence[Evidence], others: dict[str, list[Evidence]]) -> CheckResult:
        result = super().summarise(rows, others)
        uncapped = {row.id: row.passed for row in others[CapabilityCheck.name]}
        difference = paired_rate_interval(
            [uncapped[row.id] for row in rows], [row.passed for row in rows], confidence=self.params.confidence
        )
        change = (sum(row.passed for row in rows) - sum(uncapped.values())) / len(rows)
        margin = self.params.capability_margin
        return replace(
            result,
            bar=f"at most {100 * margin:g} points below uncapped",
            verdict=not_worse_verdict(difference, margin=margin),
            figures={"change_by_cap": change, "change_low": difference.low, "change_high": difference.high},
        )


def _lettered(item: ChoiceItem) -> tuple[str, tuple[str, ...]]:
    """The question with a letter for each option, and the letters."""
    letters = tuple(string.ascii_uppercase[: len(item.options)])
    lines = [f"{letter}) {option}" for letter, option in zip(letters, item.options, strict=True)]
    return "\n".join([item.question, *lines, "Answer with one letter only."]), letters
