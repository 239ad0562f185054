"""Thin arithmetic on updates against dense float64."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from karma_electric.adapters.algebra import (
    averaged_factors,
    cut_to_rank,
    factor_rule_error,
    frobenius_norm,
    inner_product,
    weighted_sum,
)
from karma_electric.adapters.files import Factors
from tests.adapters.adapter_files import random_factors

ALPHAS = st.floats(-1, 2)
SCALINGS = st.sampled_from([0.5, 1.0, 2.0, 3.7])


@st.composite
def pairs(draw: st.DrawFn, *, same_rank: bool = False) -> tuple[Factors, Factors]:
    out_features, in_features = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rank, seed, scaling = draw(st.integers(1, 6)), draw(st.integers(0, 10**6)), draw(SCALINGS)
    other_rank = rank if same_rank else draw(st.integers(1, 6))
    other_scaling = scaling if same_rank else draw(SCALINGS)
    a, b = random_factors(out_features, in_features, rank, seed=seed, kind=torch.float64)
    c, d = random_factors(out_features, in_features, other_rank, seed=seed + 1, kind=torch.float64)
    return Factors(a, b, scaling), Factors(c, d, other_scaling)


def dense(x: Factors) -> Tensor:
    return x.scaling * x.b @ x.a


def norm(x: Tensor) -> float:
    return float(torch.linalg.matrix_norm(x))


@given(pairs(), ALPHAS)
def test_sum_norm_and_inner_product_are_the_dense_ones(pair: tuple[Factors, Factors], alpha: float) -> None:
    x, y = pair
    blend = weighted_sum([(1 - alpha, x), (alpha, y)])
    expected = (1 - alpha) * dense(x) + alpha * dense(y)
    torch.testing.assert_close(dense(blend), expected, rtol=1e-12, atol=1e-11)
    scale = norm(dense(x)) + norm(dense(y))
    assert abs(frobenius_norm(blend) - norm(expected)) < 1e-11 * scale
    assert abs(inner_product(x, y) - float((dense(x) * dense(y)).sum())) < 1e-11 * scale**2


@given(pairs(same_rank=True), ALPHAS)
def test_the_error_of_the_factor_rule_is_its_distance_from_the_blend(
    pair: tuple[Factors, Factors], alpha: float
) -> None:
    x, y = pair
    rule = dense(averaged_factors(x, y, alpha))
    difference = rule - ((1 - alpha) * dense(x) + alpha * dense(y))
    closed = -alpha * (1 - alpha) * x.scaling * (y.b - x.b) @ (y.a - x.a)
    torch.testing.assert_close(difference, closed, rtol=1e-9, atol=1e-10)
    error = factor_rule_error(x, y, alpha)
    assert abs(error - norm(difference)) < 1e-9 * (1 + norm(difference))


@given(pairs(), st.integers(1, 14))
def test_a_cut_is_the_best_one(pair: tuple[Factors, Factors], rank: int) -> None:
    product = weighted_sum([(0.3, pair[0]), (0.7, pair[1])])
    matrix = dense(product)
    limit = min(product.a.shape[0], *matrix.shape)
    cut, dropped = cut_to_rank(product, min(rank, limit))
    values = torch.linalg.svdvals(matrix)
    best = norm(values[min(rank, limit) :][None])
    assert cut.scaling == 1.0
    assert cut.a.shape == (min(rank, limit), matrix.shape[1])
    assert cut.b.shape == (matrix.shape[0], min(rank, limit))
    assert abs(norm(dense(cut) - matrix) - best) < 1e-10 * norm(matrix)
    assert abs(dropped - best) < 1e-10 * norm(matrix)
    for column in cut.b.T:
        assert column[column.abs().argmax()] > 0
    torch.testing.assert_close(cut.b.norm(dim=0), cut.a.norm(dim=1), rtol=1e-9, atol=1e-9)


def test_a_cut_to_all_ranks_is_exact_and_a_zero_update_stays_zero() -> None:
    a, b = random_factors(9, 7, 3, seed=0, kind=torch.float64)
    exact, dropped = cut_to_rank(Factors(a, b, 2.0), 3)
    torch.testing.assert_close(dense(exact), 2.0 * b @ a, rtol=1e-12, atol=1e-12)
    assert dropped == 0.0
    zero, dropped = cut_to_rank(Factors(a, 0 * b, 2.0), 2)
    assert norm(dense(zero)) == dropped == 0.0
