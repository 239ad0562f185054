"""How sure the gate's intervals are: computed where that is possible, simulated where it is not.

python -m tests.gate.statistics_table
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from karma_electric.gate.intervals import (
    FEWEST_OF_SHIFTS,
    FEWEST_OF_SPREADS,
    Interval,
    mean_intervals,
    rate_interval,
)
from karma_electric.gate.verdict import rate_verdict
from karma_electric.parameters import read_yaml
from karma_electric.suites.items import read_suites
from tests.suites.suite_files import REPOSITORY, SHIPPED_SUITES

Floats = NDArray[np.float64]
Population = Callable[[np.random.Generator, tuple[int, ...]], Floats]

GATE = read_yaml(REPOSITORY / "params.yaml")["gate"]
CONFIDENCE, FLOOR = GATE["confidence"], GATE["no_failure_lower_bound"]
BELOW = 0.05  # five points, as a share
BELOW_POINTS = 0.5  # five points of a hundred, on the scale of 10
SIZES = (4, 8, 12, 16, 20, 30, 50)  # of the table: style has 12 items, cross_language 20, paraphrase 50
SIMULATIONS = 2000
RESAMPLES = 999  # of a simulated bootstrap, where the gate takes 9,999: it is the time that differs
CHUNK = 200  # samples at once


def spread_of_wordings(noise: float) -> Population:
    """Standard deviations of six whole scores that vary around 6."""

    def draw(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        scores = np.clip(np.round(random.normal(6, noise, (*shape, 6))), 1, 10)
        result: Floats = scores.std(axis=-1)
        return result

    return draw


def mostly_steady(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Four of five prompts hardly vary, the fifth does."""
    return np.where(
        random.random(shape) < 0.8, spread_of_wordings(0.35)(random, shape), spread_of_wordings(2)(random, shape)
    )


def difference(noise: float) -> Population:
    """Absolute differences of two whole scores."""
    return lambda random, shape: np.minimum(np.abs(np.round(random.normal(0, noise, shape))), 9)


def difference_with_tail(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Half of the differences are 0, few are large."""
    return np.minimum(np.floor(random.exponential(1.5, shape)), 9)


def shift(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Whole scores of one style less those of the plain answer."""
    return np.clip(np.round(random.normal(0.7, 1.5, shape)), -9, 9)


def shift_with_tails(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """The same with a few large ones in both directions."""
    return np.clip(np.round(1.2 * random.standard_t(3, shape)), -9, 9)


def shift_with_one_tail(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """The same with a few large ones in one direction."""
    return np.clip(np.round(random.exponential(2, shape) - 1), -9, 9)


POPULATIONS: dict[str, Population] = {
    "spread of wordings, small": spread_of_wordings(0.35),
    "spread of wordings, middling": spread_of_wordings(0.6),
    "spread of wordings, large": spread_of_wordings(1.0),
    "spread of wordings, mostly steady": mostly_steady,
    "differences, small": difference(1.0),
    "differences, large": difference(2.5),
    "differences with a tail": difference_with_tail,
    "shifts": shift,
    "shifts with tails": shift_with_tails,
    "shifts with one tail": shift_with_one_tail,
}


def fewest(name: str) -> int:
    """Items, from which on the gate trusts an interval of this mean."""
    return FEWEST_OF_SHIFTS if name.startswith("shifts") else FEWEST_OF_SPREADS


def true_mean(population: Population) -> float:
    return float(population(np.random.default_rng(0), (1_000_000,)).mean())


def bounds(samples: Floats) -> tuple[Floats, Floats]:
    """The gate's own intervals of samples (samples, values)."""
    parts = [
        mean_intervals(part, confidence=CONFIDENCE, resamples=RESAMPLES)
        for part in np.array_split(samples, -(-len(samples) // CHUNK))
    ]
    return np.concatenate([low for low, _ in parts]), np.concatenate([high for _, high in parts])


@functools.cache
def mean_coverage(name: str, n: int, simulations: int = SIMULATIONS) -> float:
    """The share of samples of `n` items whose interval holds the true mean."""
    population = POPULATIONS[name]
    low, high = bounds(population(np.random.default_rng(n), (simulations, n)))
    mean = true_mean(population)
    return float(((low <= mean) & (mean <= high)).mean())


def mean_passes(name: str, n: int, *, bar: float, beyond: float, simulations: int = SIMULATIONS) -> float:
    """The share of samples that pass a ceiling of `bar`, of a population stretched so that its mean is beyond it."""
    population = POPULATIONS[name]
    scale = (bar + beyond) / true_mean(population)
    _, high = bounds(scale * population(np.random.default_rng(n), (simulations, n)))
    return float((high <= bar).mean())


@functools.cache
def rate_intervals(n: int) -> list[Interval]:
    """The gate's own intervals of 0 to n items passed."""
    return [rate_interval(passed, n, confidence=CONFIDENCE) for passed in range(n + 1)]


def rate_coverage(n: int, rates: Floats) -> Floats:
    """The probability, for each true rate, that the interval of `n` items holds it: a sum, not a sample."""
    low, high = (np.asarray([getattr(each, side) for each in rate_intervals(n)])[:, None] for side in ("low", "high"))
    probability = stats.binom.pmf(np.arange(n + 1)[:, None], n, rates)
    covered: Floats = np.where((low <= rates) & (rates <= high), probability, 0.0).sum(axis=0)
    return covered


def rate_passes(n: int, bar: float, rate: float) -> float:
    """The probability that `n` items of a model with this true rate pass the bar."""
    passing = [
        passed
        for passed, interval in enumerate(rate_intervals(n))
        if rate_verdict(passed, n, interval, bar=bar, no_failure_lower_bound=FLOOR) == "pass"
    ]
    return float(stats.binom.pmf(passing, n, rate).sum())


def false_pass_table() -> str:
    """Markdown: the checks of a rate, with their shipped numbers of items."""
    suites = read_suites(SHIPPED_SUITES)
    sizes = {
        "reward_hacking": len(suites.reward_hacking),
        "redteam": len(suites.redteam),
        "format": 2 * (len(suites.reward_hacking) + len(suites.nourishment)),
        "nourishment": len(suites.nourishment),
        "overcorrection": len(suites.overcorrection),
        "sexual_boundaries": len(suites.sexual_boundaries),
    }
    lines = ["| check | items | bar | passes at 5 points below | at 95% | at the bar |", "|---|---|---|---|---|---|"]
    for name, n in sizes.items():
        bar = GATE[f"{name}_rate"]
        shown = FLOOR if bar >= 1 else bar
        words = f"all, which shows {100 * FLOOR:g}%" if bar >= 1 else f"{100 * bar:g}%"
        cells = [f"{100 * rate_passes(n, bar, rate):.1f}%" for rate in (shown - BELOW, 0.95, shown)]
        lines.append(f"| {name} | {n} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines)


def coverage_table() -> str:
    """Markdown: how often the interval of a mean holds it, by number of items."""
    lines = [f"| what is averaged | {' | '.join(f'{n} items' for n in SIZES)} |", "|---" * (len(SIZES) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(f'{100 * mean_coverage(name, n):.1f}%' for n in SIZES)} |" for name in POPULATIONS
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(false_pass_table(), coverage_table(), sep="\n\n")  # noqa: T201
