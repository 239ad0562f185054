"""The reference formula: what every other path of the cap is compared with."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap, cap_hidden_states, unit
from karma_electric.errors import InputError

SIZE = 6
STATES = arrays(np.float64, st.tuples(st.integers(1, 4), st.just(SIZE)), elements=st.floats(-1e3, 1e3))
DIRECTIONS = arrays(np.float64, SIZE, elements=st.floats(-10, 10)).filter(lambda d: np.linalg.norm(d) > 1e-3)
TAUS = st.floats(-100, 100)
ALPHAS = st.floats(0.01, 1)


def _unit64(direction: NDArray[np.float64]) -> NDArray[np.float64]:
    return direction / np.linalg.norm(direction)


@given(STATES, DIRECTIONS, TAUS)
def test_hard_cap_leaves_no_projection_above_the_ceiling_and_is_idempotent(
    hidden: NDArray[np.float64], direction: NDArray[np.float64], tau: float
) -> None:
    axis = _unit64(direction)
    capped = cap_hidden_states(hidden, axis, tau=tau, alpha=1)
    assert np.all(capped @ axis <= tau + 1e-9)
    np.testing.assert_allclose(cap_hidden_states(capped, axis, tau=tau, alpha=1), capped, atol=1e-9)


@given(STATES, DIRECTIONS, TAUS, ALPHAS)
def test_what_is_orthogonal_to_the_axis_stays(
    hidden: NDArray[np.float64], direction: NDArray[np.float64], tau: float, alpha: float
) -> None:
    axis = _unit64(direction)
    capped = cap_hidden_states(hidden, axis, tau=tau, alpha=alpha)
    across = np.eye(SIZE) - np.outer(axis, axis)
    np.testing.assert_allclose(capped @ across, hidden @ across, atol=1e-9)


@given(STATES, DIRECTIONS, TAUS, ALPHAS)
def test_alpha_is_the_share_of_the_excess_that_goes(
    hidden: NDArray[np.float64], direction: NDArray[np.float64], tau: float, alpha: float
) -> None:
    axis = _unit64(direction)
    before = hidden @ axis
    after = cap_hidden_states(hidden, axis, tau=tau, alpha=alpha) @ axis
    expected = np.where(before > tau, before - alpha * (before - tau), before)
    np.testing.assert_allclose(after, expected, atol=1e-9)


@given(STATES, DIRECTIONS, ALPHAS)
def test_states_below_the_ceiling_are_not_touched(
    hidden: NDArray[np.float64], direction: NDArray[np.float64], alpha: float
) -> None:
    axis = _unit64(direction)
    tau = float((hidden @ axis).max()) + 1e-6
    assert np.array_equal(cap_hidden_states(hidden, axis, tau=tau, alpha=alpha), hidden)


def test_one_value_by_hand() -> None:
    hidden = np.array([[3.0, 4.0], [-3.0, 4.0]])
    axis = np.array([1.0, 0.0])
    assert cap_hidden_states(hidden, axis, tau=1, alpha=0.5).tolist() == [[2.0, 4.0], [-3.0, 4.0]]
    assert cap_hidden_states(hidden, axis, tau=-4, alpha=1).tolist() == [[-4.0, 4.0], [-4.0, 4.0]]


@given(DIRECTIONS, st.floats(1e-3, 1e3))
def test_unit_forgets_the_length(direction: NDArray[np.float64], scale: float) -> None:
    found = unit(direction)
    assert found.dtype == np.float32
    assert abs(np.linalg.norm(found.astype(np.float64)) - 1) < 1e-6
    np.testing.assert_allclose(unit(direction * scale), found, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1e-12, np.nan, np.inf])
def test_a_vector_without_a_direction_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="no direction"):
        unit(np.array([value, 0.0]))


@pytest.mark.parametrize(
    ("direction", "tau", "alpha"),
    [
        ([2.0, 0.0], 0.0, 1.0),
        ([np.nan, 0.0], 0.0, 1.0),
        ([1.0, 0.0], np.nan, 1.0),
        ([1.0, 0.0], np.inf, 1.0),
        ([1.0, 0.0], 0.0, 0.0),
        ([1.0, 0.0], 0.0, 1.5),
        ([1.0, 0.0], 0.0, np.nan),
    ],
)
def test_a_cap_that_makes_no_sense_is_refused(direction: list[float], tau: float, alpha: float) -> None:
    with pytest.raises(InputError):
        Cap(directions={1: np.array(direction, np.float32)}, taus={1: tau}, alpha=alpha)


def test_a_cap_needs_the_same_layers_in_both() -> None:
    direction = np.array([1, 0], np.float32)
    for directions, taus in (({1: direction}, {2: 0.0}), ({}, {}), ({1: direction, 2: direction}, {1: 0.0})):
        with pytest.raises(InputError, match="same blocks"):
            Cap(directions=directions, taus=taus, alpha=1)
