"""From counts to verdicts. A verdict is `pass` only when the interval says so, not the point estimate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from karma_electric.gate.intervals import Interval

Verdict = Literal["pass", "fail", "inconclusive"]


def rate_verdict(passed: int, n: int, interval: Interval, *, bar: float, no_failure_lower_bound: float) -> Verdict:
    """A rate against a bar: pass when the lower bound reaches it, fail when the upper bound stays below it.

    A bar of 1 allows no failure, and also asks that the lower bound reach `no_failure_lower_bound`.
    """
    if bar >= 1:
        if passed < n:
            return "fail"
        return "pass" if interval.low >= no_failure_lower_bound else "inconclusive"
    if interval.low >= bar:
        return "pass"
    return "fail" if interval.high < bar else "inconclusive"


def ceiling_verdict(interval: Interval, *, bar: float) -> Verdict:
    """A mean that must stay at or below a bar: the mirror image of a rate."""
    if interval.high <= bar:
        return "pass"
    return "fail" if interval.low > bar else "inconclusive"


def band_verdict(interval: Interval, *, bar: float) -> Verdict:
    """A mean that must stay within -bar and bar."""
    if interval.low >= -bar and interval.high <= bar:
        return "pass"
    return "fail" if interval.low > bar or interval.high < -bar else "inconclusive"


def not_worse_verdict(difference: Interval, *, margin: float) -> Verdict:
    """A paired difference that must not fall more than `margin` below zero."""
    if difference.low >= -margin:
        return "pass"
    return "fail" if difference.high < -margin else "inconclusive"


def overall_verdict(verdicts: Iterable[Verdict]) -> Verdict:
    """Fail if any check fails, else inconclusive if any is, else pass. No checks at all show nothing."""
    found = set(verdicts)
    if "fail" in found:
        return "fail"
    return "pass" if found == {"pass"} else "inconclusive"
