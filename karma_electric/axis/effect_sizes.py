"""How well a layer's axis tells persona from generic: Cohen's d, on prompts that its direction was not made from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.errors import InputError

BOOTSTRAP_RESAMPLES = 1000
BOOTSTRAP_SEED = 0
CONFIDENCE = 0.95
LEAST_PROMPTS = 8


def effect_sizes(persona: NDArray[np.float64], differences: NDArray[np.float64]) -> NDArray[np.float32]:
    """Cohen's d of each layer with the ends of its interval, (n_layers, 3).

    `persona` and `differences` (generic minus persona), both (prompts, n_layers, hidden_size). The prompts are halved;
    each half is projected on the unit mean difference of the other. d is the difference of the two means over the root
    of the mean of the two variances (ddof 1). The interval is a bootstrap over prompts, with the directions held.
    """
    if len(persona) < LEAST_PROMPTS:
        raise InputError(f"{len(persona)} contrast prompts: an effect size needs {LEAST_PROMPTS}; add prompts")
    along_persona, along_generic = _projections(persona, differences)  # (prompts, n_layers)
    dice = np.random.default_rng(BOOTSTRAP_SEED)
    draws = dice.integers(len(persona), size=(BOOTSTRAP_RESAMPLES, len(persona)))
    found = np.stack([_cohens_d(along_persona[draw], along_generic[draw]) for draw in draws])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail], axis=0)
    return np.stack([_cohens_d(along_persona, along_generic), low, high], axis=1).astype(np.float32)


def best_window(sizes: NDArray[np.float32], width: int) -> tuple[int, int]:
    """First and last of `width` neighbouring layers whose lower ends are largest on average; never block 0, nor the
    last of 3 or more. `sizes` is what `effect_sizes` returns."""
    highest = len(sizes) - 2 if len(sizes) > 2 else 1
    width = min(width, highest)
    starts: Sequence[int] = range(1, highest - width + 2)
    first = max(starts, key=lambda start: (float(sizes[start : start + width, 1].mean()), -start))
    return first, first + width - 1


def _projections(
    persona: NDArray[np.float64], differences: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    along = np.empty(persona.shape[:2]), np.empty(persona.shape[:2])
    for half in (0, 1):
        mean = differences[1 - half :: 2].mean(axis=0)  # (n_layers, hidden_size)
        norms = np.linalg.norm(mean, axis=1, keepdims=True)
        directions = np.divide(mean, norms, out=np.zeros_like(mean), where=norms > 0)
        along[0][half::2] = np.einsum("plh,lh->pl", persona[half::2], directions)
        along[1][half::2] = along[0][half::2] + np.einsum("plh,lh->pl", differences[half::2], directions)
    return along


def _cohens_d(persona: NDArray[np.float64], generic: NDArray[np.float64]) -> NDArray[np.float64]:
    """(prompts, n_layers) twice -> (n_layers,); 0 where nothing varies."""
    spread = np.sqrt((persona.var(axis=0, ddof=1) + generic.var(axis=0, ddof=1)) / 2)
    difference = generic.mean(axis=0) - persona.mean(axis=0)
    found: NDArray[np.float64] = np.divide(difference, spread, out=np.zeros_like(difference), where=spread > 0)
    return found
