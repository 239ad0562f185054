"""How sure a rate or a mean is. All formulas are scipy's."""

from __future__ import annotations

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
    """The exact (Clopper-Pearson) interval of a rate."""
    result = stats.binomtest(passed, n).proportion_ci(confidence_level=confidence, method="exact")
    return Interval(low=float(result.low), high=float(result.high))


def mean_interval(values: list[float], *, confidence: float) -> Interval:
    """The percentile bootstrap interval of a mean, with a fixed seed. Equal values give an interval of no width."""
    data = np.asarray(values, dtype=np.float64)
    if np.ptp(data) == 0:
        return Interval(low=float(data[0]), high=float(data[0]))
    result = stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=confidence,
        n_resamples=BOOTSTRAP_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(BOOTSTRAP_SEED),
    )
    return Interval(low=float(result.confidence_interval.low), high=float(result.confidence_interval.high))
