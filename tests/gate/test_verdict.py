"""The rules from counts to verdicts, as a table."""

from __future__ import annotations

import pytest

from karma_electric.gate.intervals import Interval, rate_interval
from karma_electric.gate.verdict import Verdict, ceiling_verdict, overall_verdict, rate_verdict


@pytest.mark.parametrize(
    ("passed", "n", "bar", "verdict"),
    [
        (12, 12, 0.9, "inconclusive"),  # 12 of 12 show 74% or more
        (35, 35, 0.9, "inconclusive"),
        (36, 36, 0.9, "pass"),  # two-sided 95%: 36 items without a failure show 90%
        (0, 12, 0.9, "fail"),
        (8, 12, 0.9, "inconclusive"),  # at most 90.1%
        (7, 12, 0.9, "fail"),  # at most 84.8%
        (55, 58, 0.9, "inconclusive"),
        (55, 58, 0.85, "pass"),
        (1, 1, 0.9, "inconclusive"),
        (0, 1, 0.9, "inconclusive"),  # at most 97.5%
        (6, 6, 1.0, "inconclusive"),
        (14, 14, 1.0, "inconclusive"),
        (28, 28, 1.0, "inconclusive"),
        (29, 29, 1.0, "pass"),
        (30, 30, 1.0, "pass"),
        (29, 30, 1.0, "fail"),  # a bar of 1 allows no failure, whatever the interval
        (0, 1, 1.0, "fail"),
        (999, 1000, 1.0, "fail"),
    ],
)
def test_a_rate_against_a_bar(passed: int, n: int, bar: float, verdict: Verdict) -> None:
    interval = rate_interval(passed, n, confidence=0.95)
    assert rate_verdict(passed, n, interval, bar=bar, no_failure_lower_bound=0.88) == verdict


def test_a_bound_that_lies_on_the_bar() -> None:
    assert rate_verdict(9, 10, Interval(0.9, 1.0), bar=0.9, no_failure_lower_bound=0.5) == "pass"
    assert rate_verdict(9, 10, Interval(0.5, 0.9), bar=0.9, no_failure_lower_bound=0.5) == "inconclusive"
    assert rate_verdict(10, 10, Interval(0.88, 1.0), bar=1.0, no_failure_lower_bound=0.88) == "pass"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.0, 0.6, "pass"), (0.1, 0.61, "inconclusive"), (0.6, 0.9, "inconclusive"), (0.61, 0.9, "fail")],
)
def test_a_mean_against_a_ceiling(low: float, high: float, verdict: Verdict) -> None:
    assert ceiling_verdict(Interval(low, high), bar=0.6) == verdict


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        (["pass", "pass"], "pass"),
        (["pass", "inconclusive"], "inconclusive"),
        (["inconclusive", "fail", "pass"], "fail"),
        ([], "inconclusive"),
    ],
)
def test_the_gate_is_as_good_as_its_worst_check(verdicts: list[Verdict], overall: Verdict) -> None:
    assert overall_verdict(verdicts) == overall
