"""How often intervals hold what they should, and how often a model passes that must not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from karma_electric.gate.intervals import (
    mean_interval,
    mean_intervals,
    paired_rate_interval,
    rate_interval,
)
from karma_electric.gate.verdict import not_worse_verdict
from tests.gate.statistics_table import (
    BELOW,
    BELOW_POINTS,
    CONFIDENCE,
    FLOOR,
    GATE,
    POPULATIONS,
    SIZES,
    Floats,
    coverage_table,
    false_pass_table,
    fewest,
    mean_coverage,
    mean_passes,
    rate_coverage,
    rate_intervals,
    rate_passes,
)
from tests.suites.suite_files import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "gate.md"
QUICK = 400  # simulations; the document's numbers are of 2,000


def hard_rates(n: int) -> Floats:
    """A grid, and both sides of every bound, between which the coverage is lowest."""
    edges = np.asarray([bound for each in rate_intervals(n) for bound in (each.low, each.high)])
    every = np.concatenate([np.linspace(0.0005, 0.9995, 999), edges - 1e-9, edges + 1e-9])
    return every[(every > 0) & (every < 1)]


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 2, 4, 12, 20, 30, 36, 58, 60), id="some"),
        pytest.param((*range(1, 201), 192, 400), id="all", marks=pytest.mark.long),
    ],
)
def test_exact_intervals_cover_every_rate_at_every_number_of_items(sizes: tuple[int, ...]) -> None:
    for n in sizes:
        assert rate_coverage(n, hard_rates(n)).min() >= CONFIDENCE - 1e-9, n


@pytest.mark.parametrize(
    "sizes",
    [pytest.param((29, 36, 58, 60, 192), id="some"), pytest.param(range(1, 301), id="all", marks=pytest.mark.long)],
)
def test_a_model_five_points_below_a_rate_passes_in_five_of_a_hundred_runs_at_most(sizes: tuple[int, ...]) -> None:
    bars = {GATE[name] for name in GATE if name.endswith("_rate")}
    assert {0.9, 0.98, 1.0} <= bars
    for n in sizes:
        for bar in bars:
            shown = FLOOR if bar >= 1 else bar
            assert rate_passes(n, bar, shown - BELOW) <= 0.05, (n, bar)
            assert rate_passes(n, bar, shown) <= 0.05, (n, bar)


@pytest.mark.parametrize("gained", [0.0, 0.02, 0.1])
def test_a_cap_that_costs_five_points_more_than_it_may_passes_in_five_of_a_hundred_runs_at_most(gained: float) -> None:
    """Summed over every number of items gained and lost, of 400."""
    n, margin = 400, GATE["capability_margin"]
    each = 1 - (1 - CONFIDENCE) / 2
    bounds = [rate_interval(count, n, confidence=each) for count in range(n + 1)]
    low, high = np.asarray([each.low for each in bounds]), np.asarray([each.high for each in bounds])
    lost = gained + margin + BELOW
    counts = np.arange(n + 1)
    won, fell = np.meshgrid(counts, counts, indexing="ij")
    possible = won + fell <= n
    passes = possible & (low[won] - high[fell] >= -margin)
    changed = np.stack([won[passes], fell[passes], (n - won - fell)[passes]], axis=-1)
    assert len(changed) > 0
    assert stats.multinomial.pmf(changed, n, [gained, lost, 1 - gained - lost]).sum() <= 0.05
    for number in (0, len(changed) // 2, -1):  # what is summed is what the gate computes
        ups, downs, _ = changed[number]
        first = [True] * downs + [False] * (n - downs)
        second = [False] * (n - ups) + [True] * ups
        interval = paired_rate_interval(first, second, confidence=CONFIDENCE)
        assert not_worse_verdict(interval, margin=margin) == "pass"


def test_many_samples_at_once_have_the_bounds_that_each_has_alone() -> None:
    samples = np.random.default_rng(3).integers(0, 9, (7, 12)).astype(np.float64)
    samples[2] = 4.0
    low, high = mean_intervals(samples, confidence=0.95)
    for number, values in enumerate(samples):
        found = mean_interval(list(values), confidence=0.95)
        assert (found.low, found.high) == (low[number], high[number])


@pytest.mark.parametrize(
    ("name", "n"), [("spread of wordings, middling", 16), ("differences, large", 20), ("shifts", 12)]
)
def test_intervals_of_a_mean_hold_it(name: str, n: int) -> None:
    assert n >= fewest(name)
    assert 0.91 <= mean_coverage(name, n, QUICK) <= 0.985


@pytest.mark.parametrize(
    ("name", "n", "bar"), [("spread of wordings, large", 50, 0.6), ("differences, large", 20, 2.0)]
)
def test_a_model_five_points_beyond_a_mean_seldom_passes(name: str, n: int, bar: float) -> None:
    assert mean_passes(name, n, bar=bar, beyond=BELOW_POINTS, simulations=QUICK) <= 0.05


@pytest.mark.long
@pytest.mark.parametrize("name", POPULATIONS)
def test_intervals_of_a_mean_hold_it_in_92_to_97_of_100_samples(name: str) -> None:
    for n in SIZES:
        if n >= fewest(name):
            assert 0.92 <= mean_coverage(name, n) <= 0.97, n


@pytest.mark.long
@pytest.mark.parametrize("more", [0, 10, 34])
@pytest.mark.parametrize("name", POPULATIONS)
def test_a_model_five_points_beyond_a_mean_passes_in_five_of_a_hundred_runs_at_most(name: str, more: int) -> None:
    bars = {"spread": GATE["paraphrase_mean_std"], "differences": GATE["cross_language_difference"]}
    bar = bars.get(name.split()[0].rstrip(","), GATE["style_shift"])
    assert mean_passes(name, fewest(name) + more, bar=bar, beyond=BELOW_POINTS) <= 0.05


def test_the_documented_numbers_of_rates_are_what_is_computed() -> None:
    assert false_pass_table() in DOCUMENT.read_text("utf-8")


@pytest.mark.long
def test_the_documented_numbers_of_means_are_what_is_simulated() -> None:
    assert coverage_table() in DOCUMENT.read_text("utf-8")
