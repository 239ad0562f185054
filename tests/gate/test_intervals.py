"""Intervals: against the definition of Clopper and Pearson, summed exactly, and coverage without sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from karma_electric.gate.intervals import Interval, mean_interval, rate_interval


def probability_of(counts: range, n: int, p: float) -> float:
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in counts)


@pytest.mark.parametrize(("confidence", "sizes"), [(0.95, range(1, 41)), (0.9, [1, 7, 40]), (0.99, [1, 7, 40])])
def test_the_bounds_are_where_both_tails_have_half_of_what_is_left(confidence: float, sizes: list[int]) -> None:
    tail = (1 - confidence) / 2
    for n in sizes:
        for passed in range(n + 1):
            low, high = clopper_pearson(passed, n, tail)
            found = rate_interval(passed, n, confidence=confidence)
            assert found.low == pytest.approx(low, abs=1e-9)
            assert found.high == pytest.approx(high, abs=1e-9)
            if passed > 0:
                assert probability_of(range(passed, n + 1), n, found.low) == pytest.approx(tail, rel=1e-6)
            if passed < n:
                assert probability_of(range(passed + 1), n, found.high) == pytest.approx(tail, rel=1e-6)


def clopper_pearson(passed: int, n: int, tail: float) -> tuple[float, float]:
    """By the quantiles of the beta distribution."""
    low = stats.beta.ppf(tail, passed, n - passed + 1) if passed else 0.0
    high = stats.beta.ppf(1 - tail, passed + 1, n - passed) if passed < n else 1.0
    return float(low), float(high)


@pytest.mark.parametrize("n", [1, 6, 12, 14, 16, 30])
def test_the_interval_covers_every_rate_at_least_as_often_as_it_says(n: int) -> None:
    intervals = [rate_interval(passed, n, confidence=0.95) for passed in range(n + 1)]
    for p in np.linspace(0.005, 0.995, 199):
        covering = [k for k, interval in enumerate(intervals) if interval.low <= p <= interval.high]
        coverage = math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in covering)
        assert coverage >= 0.95, (n, p)


@pytest.mark.parametrize(("passed", "n", "low"), [(6, 6, 0.5407), (12, 12, 0.7354), (14, 14, 0.7684), (36, 36, 0.9026)])
def test_what_no_failure_shows(passed: int, n: int, low: float) -> None:
    found = rate_interval(passed, n, confidence=0.95)
    assert found.low == pytest.approx(low, abs=1e-4)
    assert found.high == 1.0


def test_the_mean_of_equal_values_has_no_width() -> None:
    assert mean_interval([0.25] * 10, confidence=0.95) == Interval(0.25, 0.25)
    assert mean_interval([3.0], confidence=0.95) == Interval(3.0, 3.0)


@settings(max_examples=10)
@given(st.lists(st.floats(0, 4.5), min_size=2, max_size=12))
def test_the_interval_of_a_mean_is_the_same_each_time_and_holds_the_mean(values: list[float]) -> None:
    found = mean_interval(values, confidence=0.95)
    assert found == mean_interval(values, confidence=0.95)
    slack = 1e-9 * (1 + max(values))
    assert found.low <= math.fsum(values) / len(values) + slack
    assert math.fsum(values) / len(values) - slack <= found.high
    if np.ptp(values) > 0:
        student = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert found.low <= student.low + slack
        assert student.high - slack <= found.high


def test_the_interval_of_a_mean_is_near_the_normal_one_when_there_are_many_values() -> None:
    values = np.random.default_rng(1).normal(2.0, 0.5, size=400)
    found = mean_interval(list(values), confidence=0.95)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.01)
    assert found.high == pytest.approx(values.mean() + half, abs=0.01)


def test_more_confidence_is_a_wider_interval() -> None:
    values = [0.0, 0.5, 1.0, 2.0, 0.3]
    narrow, wide = mean_interval(values, confidence=0.8), mean_interval(values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high
