"""From projections to ceilings, and how often a ceiling acts. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from karma_electric.axis.effect_sizes import best_window
from karma_electric.axis.measurements import AnswerProjections, Projections
from karma_electric.axis.params import AcapParams
from karma_electric.axis.prompts import KINDS
from karma_electric.canonical import rounded
from karma_electric.errors import InputError, IntegrityError

RuleName = Literal["percentile", "mean_k_sigma", "global"]

FIRST_DEPTH, LAST_DEPTH = 22 / 32, 28 / 32  # of the number of blocks: 22 to 28 in a model of 32
CONFIDENCE = 0.95
BOOTSTRAP_RESAMPLES = 2000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True)
class FiringRate:
    """Share of (token, layer) positions where the cap acts, with a two-sided interval."""

    rate: float
    low: float
    high: float
    positions: int
    answers: int  # that have a token


def default_layers(n_layers: int) -> tuple[int, int]:
    """First and last capped block: the depth of 22 to 28 of 32, rounded; never block 0, nor the last of 3 or more."""
    if n_layers < 2:
        raise InputError(f"a model of {n_layers} blocks has none to cap: block 0 cannot be")
    highest = n_layers - 2 if n_layers > 2 else 1
    last = min(max(math.floor(LAST_DEPTH * n_layers + 0.5), 1), highest)
    first = min(max(math.floor(FIRST_DEPTH * n_layers + 0.5), 1), last)
    return first, last


def capping_layers(params: AcapParams, n_layers: int, sizes: NDArray[np.float32] | None = None) -> tuple[int, ...]:
    """The blocks to cap, in order. `sizes` are those of `effect_sizes`, for the choice by them."""
    first, last = params.layers or default_layers(n_layers)
    if params.layer_choice == "effect-size":
        if sizes is None:
            raise InputError("acap.layer_choice is effect-size, but none was measured; set axis.effect_sizes: true")
        first, last = best_window(sizes, last - first + 1)
    if last >= n_layers:
        raise InputError(
            f"acap.layers: found [{first}, {last}], the model has the layers 0 to {n_layers - 1}; "
            "lower them, or null for the default depth"
        )
    return tuple(range(first, last + 1))


def rule_name(params: AcapParams) -> RuleName:
    """The rule in force: a global threshold wins over the rule of the recipe."""
    return "global" if params.threshold is not None else params.rule


def rule_value(params: AcapParams) -> float:
    """The one number of the rule in force: the percentile, k, or T."""
    if params.threshold is not None:
        return params.threshold
    return params.percentile if params.rule == "percentile" else params.k_sigma


def fit_tokens(params: AcapParams, projections: Projections) -> NDArray[np.float32]:
    """(tokens, n_layers): what the rule is fitted on. mean_k_sigma takes all kinds, otherwise the persona's tokens."""
    kinds = KINDS if rule_name(params) == "mean_k_sigma" else ("persona",)
    return np.concatenate([projections[kind, "fit"].values for kind in kinds])


def choose_taus(params: AcapParams, layers: Sequence[int], tokens: NDArray[np.float32]) -> dict[int, float]:
    """The ceiling of each layer, a float32 value, by the rule in force.

    percentile: the least projection that at least q% of the tokens do not exceed, so that the cap fires on (100 - q)%.
    mean_k_sigma: mean - k x std, the standard deviation that of the population. global: -T.
    """
    if not len(tokens):
        raise InputError("the model ended every calibration answer at once; no projection to calibrate on")
    taus: dict[int, float] = {}
    for layer in layers:
        column = tokens[:, layer].astype(np.float64)
        if params.threshold is not None:
            tau = -params.threshold
        elif params.rule == "percentile":
            tau = percentile(column, params.percentile)
        else:
            tau = float(column.mean() - params.k_sigma * column.std())
        taus[layer] = float(np.float32(tau))
    if rule_name(params) == "percentile":
        _check_share(params.percentile, taus, tokens)
    return taus


def percentile(values: NDArray[np.float64], q: float) -> float:
    """The least of `values` (n,) that at least q% of them do not exceed: always one of them, never in between."""
    rank = math.ceil(len(values) * q / 100 - 1e-9)
    return float(np.sort(values)[max(rank, 1) - 1])


def summary(values: NDArray[np.float32]) -> dict[str, float]:
    """Mean, standard deviation, range and quartiles of one layer's projections (tokens,)."""
    wide = values.astype(np.float64)
    found = {"mean": wide.mean(), "std": wide.std(), "min": wide.min(), "max": wide.max()}
    found |= {f"p{q}": percentile(wide, q) for q in (25, 50, 75)}
    return {name: rounded(float(value)) for name, value in found.items()}


def firing_rate(found: AnswerProjections, taus: Mapping[int, float], *, where: str) -> FiringRate:
    """How often <h, v> exceeds tau, over all tokens and capped layers.

    The projections are those of the model without a cap. In a capped run an earlier layer lowers what reaches the later
    ones, so that they fire less often than this.

    The tokens of an answer depend on each other, so the interval is a bootstrap over answers. Where no position or
    every position fires, a bootstrap has no width; there the interval is the exact one of that many answers.
    Raises InputError, starting with `where`, when there is no token.
    """
    layers = sorted(taus)
    if not len(found.values):
        raise InputError(f"{where}: the model ended every answer at once; its firing rate is unknown")
    fires = found.values[:, layers] > np.array([taus[layer] for layer in layers], np.float32)  # (tokens, layers)
    per_token = fires.sum(axis=1).astype(np.float64)
    fired = np.bincount(found.answers, weights=per_token, minlength=found.n_answers).astype(np.float64)
    positions = np.bincount(found.answers, minlength=found.n_answers) * len(layers)
    present = positions > 0
    low, high = _interval(fired[present], positions[present])
    return FiringRate(
        rate=float(fired.sum() / positions.sum()),
        low=low,
        high=high,
        positions=int(positions.sum()),
        answers=int(present.sum()),
    )


def _interval(fired: NDArray[np.float64], positions: NDArray[np.int64]) -> tuple[float, float]:
    """The interval of sum(fired) / sum(positions), both (answers,)."""
    n, tail = len(fired), (1 - CONFIDENCE) / 2
    if fired.sum() == 0:
        return 0.0, 1 - tail ** (1 / n)
    if fired.sum() == positions.sum():
        return tail ** (1 / n), 1.0
    if n == 1:
        return 0.0, 1.0
    dice = np.random.default_rng(BOOTSTRAP_SEED)
    draws = dice.multinomial(n, np.full(n, 1 / n), size=BOOTSTRAP_RESAMPLES)  # (resamples, answers)
    rates = (draws @ fired) / (draws @ positions)
    low, high = np.quantile(rates, [tail, 1 - tail])
    return float(low), float(high)


def _check_share(q: float, taus: Mapping[int, float], tokens: NDArray[np.float32]) -> None:
    """By construction (100 - q)% of the tokens fire, to one token; equal projections would break that."""
    expected = len(tokens) * (100 - q) / 100
    for layer, tau in taus.items():
        fired = int((tokens[:, layer] > np.float32(tau)).sum())
        if abs(fired - expected) > 1:
            raise IntegrityError(
                f"layer {layer}: tau {tau:.6g} fires on {fired} of {len(tokens)} tokens, expected {expected:.1f} "
                "to one token; many projections are equal: are the answers copies of each other?"
            )
