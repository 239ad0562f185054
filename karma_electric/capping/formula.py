"""Activation capping, once, in float64: the reference that every other path is compared with.

A ceiling along the unit axis v = d / |d|, where d points from the persona to the generic assistant:

    h <- h - alpha * max(0, <h, v> - tau) * v

After The Assistant Axis (arXiv 2601.10387), which caps the other direction as a floor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karma_electric.errors import InputError

LEAST_NORM = 1e-8


@dataclass(frozen=True)
class Cap:
    """What is capped: a unit direction and a signed ceiling `tau` for each decoder block (0-based), and one alpha."""

    directions: Mapping[int, NDArray[np.float32]]  # block -> (hidden_size,), norm 1
    taus: Mapping[int, float]  # block -> ceiling of <h, v>, in activation units
    alpha: float

    def __post_init__(self) -> None:
        if set(self.directions) != set(self.taus) or not self.taus:
            raise InputError("a cap needs the same blocks in directions and taus, and at least one")
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha is {self.alpha}, expected 0 < alpha <= 1")
        for layer, tau in self.taus.items():
            norm = float(np.linalg.norm(self.directions[layer].astype(np.float64)))
            if not (np.isfinite(tau) and abs(norm - 1) <= 1e-4):  # so that a NaN is refused
                raise InputError(f"layer {layer}: tau is {tau}, the direction's norm {norm:.6f}; expected finite and 1")

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.taus))

    @property
    def hidden_size(self) -> int:
        return len(next(iter(self.directions.values())))


def unit(direction: NDArray[np.floating]) -> NDArray[np.float32]:
    """(hidden_size,) -> the same direction with norm 1. Raises InputError for a zero or non-finite vector."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is refused below
        wide = direction.astype(np.float64)
        norm = float(np.linalg.norm(wide))
    if not np.isfinite(norm) or norm <= LEAST_NORM:
        raise InputError(f"an axis of norm {norm} has no direction; extract it again")
    return (wide / norm).astype(np.float32)


def cap_hidden_states(
    hidden: NDArray[np.floating], direction: NDArray[np.floating], *, tau: float, alpha: float
) -> NDArray[np.float64]:
    """The formula in float64: hidden (..., hidden_size), direction (hidden_size,) of norm 1 -> (..., hidden_size)."""
    wide, axis = hidden.astype(np.float64), direction.astype(np.float64)
    excess = np.maximum(0.0, wide @ axis - tau)  # (...)
    return wide - alpha * excess[..., None] * axis
