"""How sure a rate, a mean or a difference is, and what a number of items can show. All formulas are scipy's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

BOOTSTRAP_RESAMPLES = 9999
BOOTSTRAP_SEED = 20250101


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


def rate_interval(passed: int, n: int, *, confidence: float) -> Interval:
    """The exact interval of a rate (Clopper and Pearson, Biometrika 26, 1934)."""
    result = stats.binomtest(passed, n).proportion_ci(confidence_level=confidence, method="exact")
    return Interval(low=float(result.low), high=float(result.high))


def most_failures(n: int, *, bar: float, no_failure_lower_bound: float, confidence: float) -> int | None:
    """How many of `n` items may fail so that the rate can still be shown to reach `bar`; None when none may, and even
    that is not enough. A bar of 1 allows no failure."""
    if bar >= 1:
        return 0 if rate_interval(n, n, confidence=confidence).low >= no_failure_lower_bound else None
    failures = 0
    while failures <= n and rate_interval(n - failures, n, confidence=confidence).low >= bar:
        failures += 1
    return failures - 1 if failures else None


def mean_interval(values: Sequence[float], *, confidence: float) -> Interval:
    """The bootstrap interval of a mean (bias-corrected and accelerated: Efron, JASA 82, 1987), with a fixed seed.

    One value stands for one item, so items are the clusters. Equal values give an interval of no width.
    """
    data = np.asarray(values, dtype=np.float64)
    if np.ptp(data) == 0:
        return Interval(low=float(data[0]), high=float(data[0]))
    result = stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=confidence,
        n_resamples=BOOTSTRAP_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )
    return Interval(low=float(result.confidence_interval.low), high=float(result.confidence_interval.high))


def paired_rate_interval(first: Sequence[bool], second: Sequence[bool], *, confidence: float) -> Interval:
    """The difference of two rates on the same items, second minus first, in a conservative exact interval.

    The difference is (gained - lost) / n. Each share has its exact interval at half the error, so both hold together
    with at least `confidence` (Bonferroni), and so does their difference. Unlike a bootstrap it has a width when no
    item changed.
    """
    n = len(first)
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    each = 1 - (1 - confidence) / 2
    up, down = rate_interval(gained, n, confidence=each), rate_interval(lost, n, confidence=each)
    return Interval(low=up.low - down.high, high=up.high - down.low)


def paired_change_interval(first: Sequence[bool], second: Sequence[bool], *, confidence: float) -> Interval:
    """The difference of two rates on the same items, second minus first, given how many items changed at all.

    Zero lies outside exactly when McNemar's exact test (Psychometrika 12, 1947) rejects that gains and losses are as
    likely. Where no item changed, nothing speaks for a change: the interval is zero. For a margin, use
    `paired_rate_interval`.
    """
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    changed = sum(a != b for a, b in zip(first, second, strict=True))
    if not changed:
        return Interval(0.0, 0.0)
    share, of_changed = changed / len(first), rate_interval(gained, changed, confidence=confidence)
    return Interval(low=(2 * of_changed.low - 1) * share, high=(2 * of_changed.high - 1) * share)
