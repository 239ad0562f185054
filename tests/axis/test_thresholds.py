"""Ceilings and firing rates: arithmetic that can be checked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from karma_electric.axis.measurements import AnswerProjections, Projections
from karma_electric.axis.params import AcapParams
from karma_electric.axis.prompts import KINDS, SPLITS
from karma_electric.axis.thresholds import (
    capping_layers,
    choose_taus,
    default_layers,
    firing_rate,
    fit_tokens,
    percentile,
    rule_name,
    rule_value,
    summary,
)
from karma_electric.errors import InputError, IntegrityError
from tests.axis.conftest import ACAP


def _params(**changes: Any) -> AcapParams:
    return AcapParams(**(ACAP.model_dump() | changes))


@pytest.mark.parametrize(
    ("n_layers", "expected"),
    [(2, (1, 1)), (3, (1, 1)), (4, (2, 2)), (16, (11, 14)), (30, (21, 26)), (32, (22, 28)), (80, (55, 70))],
)
def test_the_default_layers_lie_as_deep_as_22_to_28_of_32(n_layers: int, expected: tuple[int, int]) -> None:
    assert default_layers(n_layers) == expected


@given(st.integers(2, 300))
def test_default_layers_are_layers(n_layers: int) -> None:
    first, last = default_layers(n_layers)
    assert 1 <= first <= last < n_layers
    assert last < n_layers - 1 or n_layers == 2


def test_layers_of_the_recipe_must_exist() -> None:
    assert capping_layers(_params(layers=(2, 4)), 5) == (2, 3, 4)
    assert capping_layers(_params(layers=None), 30) == tuple(range(21, 27))
    with pytest.raises(InputError, match=r"acap\.layers: found \[2, 5\], the model has the layers 0 to 4"):
        capping_layers(_params(layers=(2, 5)), 5)
    with pytest.raises(InputError, match="none to cap"):
        capping_layers(_params(layers=None), 1)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40, unique=True), st.floats(0.01, 99.99))
def test_a_percentile_fires_on_the_rest_to_one_token(values: list[float], q: float) -> None:
    tokens = np.array(values, np.float32)[:, None]
    tau = choose_taus(_params(percentile=q), [0], tokens)[0]
    assert tau in values
    assert abs((tokens > np.float32(tau)).sum() - len(values) * (100 - q) / 100) <= 1


def test_percentiles_by_hand() -> None:
    values = np.array([4.0, 1.0, 3.0, 2.0])
    assert [percentile(values, q) for q in (1, 25, 26, 50, 75, 76, 99)] == [1, 1, 2, 2, 3, 4, 4]
    assert summary(values.astype(np.float32)) == {
        "mean": 2.5, "std": 1.11803, "min": 1.0, "max": 4.0, "p25": 1.0, "p50": 2.0, "p75": 3.0
    }  # fmt: skip


def test_equal_projections_are_an_error_for_a_percentile() -> None:
    tokens = np.array([[1.0]] * 6 + [[2.0]] * 2, np.float32)
    assert choose_taus(_params(percentile=75), [0], tokens) == {0: 1.0}
    with pytest.raises(IntegrityError, match="many projections are equal"):
        choose_taus(_params(percentile=40), [0], tokens)


def test_the_other_rules() -> None:
    tokens = np.array([[1.0, 10.0], [3.0, 30.0]], np.float32)
    assert choose_taus(_params(rule="mean_k_sigma", k_sigma=0.5), [0, 1], tokens) == {0: 1.5, 1: 15.0}
    assert choose_taus(_params(threshold=2.5), [1], tokens) == {1: -2.5}
    tau = choose_taus(_params(threshold=2.1), [1], tokens)[1]
    assert tau == float(np.float32(-2.1)) != -2.1  # the value that the file holds
    with pytest.raises(InputError, match="ended every calibration answer"):
        choose_taus(_params(), [0], tokens[:0])


def test_the_rule_in_force() -> None:
    assert (rule_name(_params()), rule_value(_params())) == ("percentile", 75)
    sigma = _params(rule="mean_k_sigma", k_sigma=1.5)
    assert (rule_name(sigma), rule_value(sigma)) == ("mean_k_sigma", 1.5)
    both = _params(rule="mean_k_sigma", threshold=2.1)
    assert (rule_name(both), rule_value(both)) == ("global", 2.1)


def _set(values: list[list[float]], answers: list[int], n_answers: int) -> AnswerProjections:
    columns: NDArray[np.float32] = np.array(values, np.float32).reshape(len(values), len(values[0]) if values else 1)
    return AnswerProjections(columns, np.array(answers, np.int32), n_answers)


def test_only_the_mixed_rule_looks_at_all_kinds_and_none_at_held_out_tokens() -> None:
    projections: Projections = {
        (kind, split): _set([[float(10 * KINDS.index(kind) + SPLITS.index(split))]], [0], 1)
        for kind in KINDS
        for split in SPLITS
    }
    assert fit_tokens(_params(), projections).tolist() == [[0.0]]
    assert fit_tokens(_params(threshold=1), projections).tolist() == [[0.0]]
    mixed = fit_tokens(_params(rule="mean_k_sigma"), projections)
    assert mixed.tolist() == [[0.0], [10.0], [20.0], [30.0]]


def test_a_firing_rate_by_hand() -> None:
    found = _set([[0, 5, 0], [0, 1, 9], [0, 5, 9], [0, 1, 0]], [0, 0, 2, 2], 3)
    rate = firing_rate(found, {1: 1.0, 2: 8.0}, where="x")
    assert rate.rate == 4 / 8
    assert (rate.positions, rate.answers) == (8, 2)  # the second answer is empty
    assert firing_rate(found, {1: 4.0}, where="x").rate == 0.5
    assert firing_rate(found, {1: 5.0}, where="x").rate == 0  # at the ceiling is not above it
    with pytest.raises(InputError, match="x: the model ended every answer"):
        firing_rate(_set([], [], 2), {0: 1.0}, where="x")


def test_the_interval_takes_answers_as_the_unit() -> None:
    dice = np.random.default_rng(2)
    answers = np.repeat(np.arange(20), 30)
    together = np.repeat(dice.normal(size=20), 30)[:, None].astype(np.float32)  # tokens of an answer are equal
    apart = dice.normal(size=(600, 1)).astype(np.float32)
    clustered = firing_rate(AnswerProjections(together, answers.astype(np.int32), 20), {0: 0.0}, where="x")
    independent = firing_rate(AnswerProjections(apart, answers.astype(np.int32), 20), {0: 0.0}, where="x")
    for found in (clustered, independent):
        assert found.low < found.rate < found.high
    assert clustered.high - clustered.low > 3 * (independent.high - independent.low)


def test_the_interval_is_exact_at_the_ends() -> None:
    found = _set([[0.0]] * 6, [0, 0, 1, 1, 2, 2], 3)
    none = firing_rate(found, {0: 1.0}, where="x")
    every = firing_rate(found, {0: -1.0}, where="x")
    assert (none.rate, none.low, every.rate, every.high) == (0, 0, 1, 1)
    assert none.high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert every.low == pytest.approx(0.025 ** (1 / 3))
    one = firing_rate(_set([[0.0], [2.0]], [0, 0], 1), {0: 1.0}, where="x")
    assert (one.rate, one.low, one.high) == (0.5, 0, 1)
