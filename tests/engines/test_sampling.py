"""How the next token is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.engines.sampling import Sampler, Sampling
from karma_electric.errors import InputError

LOGITS = np.log(np.array([0.05, 0.4, 0.05, 0.3, 0.2], np.float32))


def shares(sampling: Sampling, count: int = 4000) -> list[float]:
    sampler = Sampler(sampling)
    found = np.bincount([sampler.choose(LOGITS) for _ in range(count)], minlength=5)
    return [float(share) for share in found / count]


def test_greedy_takes_the_lowest_of_the_likeliest() -> None:
    assert Sampler(Sampling()).choose(np.array([1, 5, 5, 0], np.float32)) == 1


def test_shares_are_the_probabilities() -> None:
    np.testing.assert_allclose(shares(Sampling(1.0, seed=1)), [0.05, 0.4, 0.05, 0.3, 0.2], atol=0.03)
    squares = np.array([0.05, 0.4, 0.05, 0.3, 0.2]) ** 2
    np.testing.assert_allclose(shares(Sampling(0.5, seed=2)), squares / squares.sum(), atol=0.03)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 3, 4]), (0.92, [0, 1, 3, 4]), (1.0, [0, 1, 2, 3, 4])],
)
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: list[int]) -> None:
    found = shares(Sampling(1.0, top_p, seed=3), 1000)
    assert [token for token, share in enumerate(found) if share] == kept


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.floats(0.01, 1), st.integers(0, 2**32))
def test_any_draw_is_in_the_nucleus_and_a_seed_repeats_it(values: list[float], top_p: float, seed: int) -> None:
    logits = np.array(values, np.float32)
    chosen = [Sampler(Sampling(1.0, top_p, seed)).choose(logits) for _ in range(2)]
    assert chosen[0] == chosen[1]
    weights = np.exp(logits.astype(np.float64) - logits.max())
    above = weights[weights > weights[chosen[0]] * (1 + 1e-9)].sum() / weights.sum()
    assert above < top_p + 1e-9


@pytest.mark.parametrize("temperature", [1e-320, 1e-6])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    assert shares(Sampling(temperature, seed=4), 20) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize(("temperature", "top_p"), [(-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0), (1, 1.1)])
def test_wrong_values_are_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(InputError, match="temperature is"):
        Sampling(temperature, top_p)
