"""Arithmetic on low-rank updates s x B A that never forms the dense product. Everything is float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from karma_electric.adapters.files import Factors


def weighted_sum(terms: Sequence[tuple[float, Factors]]) -> Factors:
    """sum of w x s B A, exactly: ranks are joined, scaling is 1, and the columns of b carry w x s."""
    return Factors(
        a=torch.cat([factors.a for _, factors in terms], dim=0),  # (r1 + r2, in)
        b=torch.cat([weight * factors.scaling * factors.b for weight, factors in terms], dim=1),  # (out, r1 + r2)
        scaling=1.0,
    )


def averaged_factors(first: Factors, second: Factors, alpha: float) -> Factors:
    """The old rule, for equal ranks and scalings: each factor is averaged alone, so the product has cross terms."""
    return Factors(
        a=(1 - alpha) * first.a + alpha * second.a,
        b=(1 - alpha) * first.b + alpha * second.b,
        scaling=first.scaling,
    )


def inner_product(x: Factors, y: Factors) -> float:
    """<s_x B_x A_x, s_y B_y A_y> over all entries, from Gram matrices of size (r_x, r_y)."""
    gram = (x.b.T @ y.b) * (x.a @ y.a.T)
    return x.scaling * y.scaling * float(gram.sum())


def factor_rule_error(first: Factors, second: Factors, alpha: float) -> float:
    """Frobenius norm of `averaged_factors` minus the true blend.

    The difference is exactly -alpha (1 - alpha) s (B2 - B1)(A2 - A1), which is computed from the differences, so that
    nothing cancels.
    """
    difference = Factors(a=second.a - first.a, b=second.b - first.b, scaling=alpha * (1 - alpha) * first.scaling)
    return math.sqrt(max(0.0, inner_product(difference, difference)))


def frobenius_norm(x: Factors) -> float:
    """|s B A| by QR of both factors: accurate also where the columns cancel."""
    core = _upper(x.b) @ _upper(x.a.T).T
    return abs(x.scaling) * float(torch.linalg.vector_norm(core))


def rounding_scale(x: Factors) -> float:
    """s |B| |A|: what the rounding error of the stored factors is in proportion to."""
    return abs(x.scaling) * float(torch.linalg.vector_norm(x.b) * torch.linalg.vector_norm(x.a))


def cut_to_rank(x: Factors, rank: int) -> tuple[Factors, float]:
    """The best approximation of s B A with `rank` columns (scaling 1), and the Frobenius norm of what is cut off.

    QR of both thin factors, then an SVD of the small core; each singular value is shared evenly by both factors. The
    sign of a column pair is free: the entry of b's column that is largest in size (the first of equals) is positive.
    """
    left, left_upper = torch.linalg.qr(x.b)  # (out, k1), (k1, r)
    right, right_upper = torch.linalg.qr(x.a.T)  # (in, k2), (k2, r)
    u, values, vt = torch.linalg.svd(x.scaling * (left_upper @ right_upper.T), full_matrices=False)
    root = values[:rank].sqrt()
    b = (left @ u[:, :rank]) * root  # (out, rank)
    a = root[:, None] * (vt[:rank] @ right.T)  # (rank, in)
    peaks = b.gather(0, b.abs().argmax(dim=0, keepdim=True))  # (1, rank)
    signs = torch.where(peaks < 0, -1.0, 1.0)
    return Factors(a=a * signs.T, b=b * signs, scaling=1.0), float(torch.linalg.vector_norm(values[rank:]))


def _upper(thin: Tensor) -> Tensor:
    upper: Tensor = torch.linalg.qr(thin, mode="r").R
    return upper
