"""Choosing the next token from its logits: greedily, or by chance that a seed repeats."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karma_electric.errors import InputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 takes the likeliest; `top_p` keeps the fewest that reach this share."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None  # None: another answer each time

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0 and 0 < self.top_p <= 1):
            raise InputError(
                f"temperature is {self.temperature}, top_p {self.top_p}; expected at least 0, and above 0 up to 1"
            )


class Sampler:
    """Chooses token after token; one draw from the generator each, so that answers with a seed are the same."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = random.Random(sampling.seed)  # noqa: S311

    def choose(self, logits: NDArray[np.float32]) -> int:
        """A token id: the likeliest, the lowest id among equals, or one drawn. Logits are (vocab_size,), finite."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        probabilities = _probabilities(logits, self._sampling.temperature)
        candidates = _nucleus(probabilities, self._sampling.top_p)
        steps = probabilities[candidates].cumsum()
        place = int(np.searchsorted(steps, self._random.random() * steps[-1], side="right"))
        return int(candidates[min(place, len(candidates) - 1)])


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, in float64: (vocab_size,) -> (vocab_size,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    log_probabilities: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return log_probabilities


def _probabilities(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # of a temperature near 0: -inf is what is meant
        weights: NDArray[np.float64] = np.exp((wide - wide.max()) / temperature)
    weights /= weights.sum()
    return weights


def _nucleus(probabilities: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """The likeliest tokens whose probabilities together reach `top_p`, likeliest first, the lowest id among equals."""
    # All tokens below the bound together weigh less than 1 - top_p, so none of them is in the nucleus.
    bound = (1 - top_p) / len(probabilities)
    candidates: NDArray[np.int64] = np.flatnonzero(probabilities >= bound)
    candidates = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    count = int(np.searchsorted(probabilities[candidates].cumsum(), top_p)) + 1
    return candidates[:count]
