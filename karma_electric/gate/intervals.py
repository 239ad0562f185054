"""How sure a rate, a mean or a difference is, and what a number of items can show. All formulas are scipy's."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

BOOTSTRAP_RESAMPLES = 9999
BOOTSTRAP_SEED = 20250101

# Below so many items an interval of a mean holds it too seldom (simulated; docs/gate.md has the numbers).
FEWEST_OF_SHIFTS = 12  # differences with a sign
FEWEST_OF_SPREADS = 16  # deviations and absolute differences, which lean to one side

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@functools.lru_cache(maxsize=4096)
def rate_interval(passed: int, n: int, *, confidence: float) -> Interval:
    """The exact interval of a rate (Clopper and Pearson, Biometrika 26, 1934). Kept: a gate asks for the same again."""
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


def mean_interval(values: Sequence[float], *, confidence: float, least: float = -math.inf) -> Interval:
    """The interval of a mean: the wider one, on each side, of the bootstrap's and Student's.

    The bootstrap (bias-corrected and accelerated: Efron, JASA 82, 1987; with a fixed seed) follows a skewed spread, and
    is too narrow for few values; Student's t (Biometrika 6, 1908) is made for few values, and knows no skew. One value
    stands for one item, so items are the clusters. Equal values give an interval of no width. Where no value can be
    below `least`, no bound is.
    """
    low, high = mean_intervals(np.asarray([values], dtype=np.float64), confidence=confidence)
    return Interval(low=max(least, float(low[0])), high=float(high[0]))


def mean_intervals(
    samples: Floats, *, confidence: float, resamples: int = BOOTSTRAP_RESAMPLES
) -> tuple[Floats, Floats]:
    """The lower and upper bounds, (samples,), of the means of samples (samples, values), each as if it stood alone."""
    low, high = samples[:, 0].copy(), samples[:, 0].copy()
    varied = np.ptp(samples, axis=1) > 0
    if varied.any():
        low[varied], high[varied] = _wider(samples[varied], confidence, resamples)
    return low, high


def _wider(samples: Floats, confidence: float, resamples: int) -> tuple[Floats, Floats]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of values that hardly vary: the bootstrap's bounds are NaN
        bootstrap = stats.bootstrap(
            (samples,),
            np.mean,
            axis=1,
            confidence_level=confidence,
            n_resamples=resamples,
            method="BCa",
            rng=np.random.default_rng(BOOTSTRAP_SEED),
        ).confidence_interval
        student = stats.ttest_1samp(samples, 0.0, axis=1).confidence_interval(confidence_level=confidence)
    return np.fmin(bootstrap.low, student.low), np.fmax(bootstrap.high, student.high)


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
