"""Proves, on a model's own numbers, that a cap does what the formula says: on every path, for prompt and answer.

Directions and ceilings are planted so that about half of the positions lie above them. Then each path (numpy, PyTorch,
llama.cpp) reads a prompt at once and an answer token by token, capped and uncapped, and is held against the oracle:

- no state after the cap lies above where the formula puts it: tau for alpha 1;
- the logits after every token are the oracle's, to a bound that follows from the path's arithmetic;
- the likeliest token is the oracle's, wherever the oracle's first and second are further apart than two bounds;
- capped and uncapped logits differ by more than ten bounds, in the prompt and in the answer. A bound that a dead cap
  would also keep proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap, unit
from karma_electric.capping.oracle import Array, Memory, Oracle, exact_cap
from karma_electric.errors import InputError

PROJECTION_BOUND = 1e-5  # of a float32 state, for each unit of the state's largest value above 1
DIFFERENCE_FACTOR = 10  # capped and uncapped differ by more than so many bounds
LEAST_COMPARED = 0.5  # of the tokens: so many must be clear enough to be compared
_DEPTHS = (0.0, 1.0, 2.0, 4.0, 8.0)  # ceilings to try: so many quartile ranges below the median


@dataclass(frozen=True)
class Case:
    """A planted cap, and the tokens that every path reads."""

    name: str
    cap: Cap
    lengths: Mapping[int, float]  # layer -> length of the direction as it would stand in an axis file
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def token_ids(self) -> tuple[int, ...]:
        return (*self.prompt, *self.answer)


@dataclass(frozen=True)
class Observation:
    """What a path computed for prompt and answer."""

    logits: NDArray[np.floating]  # (tokens, vocab_size), after each token
    states: Mapping[int, NDArray[np.floating]]  # capped layer -> (tokens, hidden_size), after the cap


class CappedPath(Protocol):
    """One way to compute a capped model."""

    @property
    def name(self) -> str: ...

    @property
    def logit_bound(self) -> float | None:
        """How far from the oracle; None: other weights, so that nothing but the projections can be held against it."""
        ...

    def run(self, case: Case, *, capped: bool) -> Observation:
        """Read the prompt at once, then the answer token by token."""
        ...


@dataclass(frozen=True)
class Result:
    """One path in one case. Differences are absolute, of logits."""

    path: str
    case: str
    bound: float | None
    difference: float  # largest, capped, from the oracle
    uncapped_difference: float
    cosine: float  # least over all tokens, capped
    effect: float  # least over prompt and answer of the largest difference between capped and uncapped
    agreement: float  # share of compared tokens whose likeliest next token is the oracle's
    compared: float  # share of tokens that are clear enough
    excess: float  # largest projection above where the formula puts it, in units of PROJECTION_BOUND
    faults: tuple[str, ...]

    @property
    def conforms(self) -> bool:
        return not self.faults


def plant(
    oracle: Oracle, prompt: Sequence[int], *, layers: Sequence[int], alpha: float, bound: float, seed: int
) -> Cap:
    """Random directions in `layers`, and ceilings below which the oracle's own logits move by 20 bounds or more.

    Ceilings start at the medians of the prompt's projections and go down until the effect is that large.
    Raises InputError where no ceiling has it.
    """
    dice = np.random.default_rng(seed)
    directions = {layer: unit(dice.normal(size=oracle.hidden_size)) for layer in layers}
    states: dict[int, Array] = {}

    def see(layer: int, hidden: Array) -> Array:
        states[layer] = hidden
        return hidden

    plain = oracle.forward(prompt, Memory.empty(), see)
    for depth in _DEPTHS:
        taus: dict[int, float] = {}
        for layer in layers:
            low, middle, high = np.quantile(states[layer] @ directions[layer].astype(np.float64), [0.25, 0.5, 0.75])
            taus[layer] = float(np.float32(middle - depth * (high - low)))
        cap = Cap(directions, taus, alpha)
        capped = oracle.forward(prompt, Memory.empty(), partial(exact_cap, cap))
        if np.abs(capped - plain).max() > 2 * DIFFERENCE_FACTOR * bound:
            return cap
    raise InputError(f"no ceiling moves the logits by {2 * DIFFERENCE_FACTOR * bound:g}; this model does not react")


def make_case(
    oracle: Oracle,
    prompt: Sequence[int],
    *,
    name: str,
    layers: Sequence[int],
    alpha: float,
    bound: float,
    answer_tokens: int,
    seed: int = 0,
) -> Case:
    """A planted cap and the oracle's own greedy answer under it."""
    cap = plant(oracle, prompt, layers=layers, alpha=alpha, bound=bound, seed=seed)
    memory, answer = Memory.empty(), list[int]()
    tokens = list(prompt)
    while len(answer) < answer_tokens:
        logits = oracle.forward(tokens, memory, partial(exact_cap, cap))
        answer.append(int(logits[-1].argmax()))
        tokens = answer[-1:]
    dice = np.random.default_rng(seed + 1)
    lengths = {layer: float(dice.uniform(3, 9)) for layer in layers}
    return Case(name, cap, lengths, tuple(prompt), tuple(answer))


def observe_oracle(oracle: Oracle, case: Case) -> Pair:
    """What must come out. In one go: the oracle is the same with and without a memory."""
    return Pair(_observe(oracle, case, capped=True), _observe(oracle, case, capped=False))


def _observe(oracle: Oracle, case: Case, *, capped: bool) -> Observation:
    states: dict[int, Array] = {}

    def lower(layer: int, hidden: Array) -> Array:
        lowered = exact_cap(case.cap, layer, hidden) if capped else hidden
        if layer in case.cap.taus:
            states[layer] = lowered
        return lowered

    return Observation(oracle.forward(case.token_ids, Memory.empty(), lower), states)


@dataclass(frozen=True)
class Pair:
    """The same tokens with the cap and without."""

    capped: Observation
    uncapped: Observation


def observe(path: CappedPath, case: Case) -> Pair:
    """Run one path in one case."""
    return Pair(path.run(case, capped=True), path.run(case, capped=False))


def judge(path: CappedPath, case: Case, found: Pair, oracle: Pair) -> Result:
    """Hold what a path computed against what the oracle did."""
    capped, uncapped, expected, bound = found.capped, found.uncapped, oracle.capped, path.logit_bound
    logits, wanted = capped.logits.astype(np.float64), expected.logits.astype(np.float64)
    agreement, compared = agreement_of(logits, wanted, bound or 0.0)
    moved = np.abs(logits - uncapped.logits).max(axis=1)  # (tokens,)
    start = len(case.prompt)
    result = Result(
        path=path.name,
        case=case.name,
        bound=bound,
        difference=float(np.abs(logits - wanted).max()),
        uncapped_difference=float(np.abs(uncapped.logits - oracle.uncapped.logits).max()),
        cosine=float(cosines(logits, wanted).min()),
        effect=float(min(moved[:start].max(), moved[start:].max())),
        agreement=agreement,
        compared=compared,
        excess=_excess(case, capped, expected, own=bound is None),
        faults=(),
    )
    return replace(result, faults=tuple(_faults(result)))


def _faults(result: Result) -> list[str]:
    found = []
    if not result.excess <= 1:  # so that a NaN is a fault
        found.append(f"a state lies {result.excess * PROJECTION_BOUND:.3g} above where the cap puts it")
    if result.bound is None:
        return found
    for what, difference in (("capped", result.difference), ("uncapped", result.uncapped_difference)):
        if not difference <= result.bound:
            found.append(f"{what} logits are {difference:.3g} from the oracle, expected at most {result.bound:g}")
    if not result.effect > DIFFERENCE_FACTOR * result.bound:
        found.append(f"the cap moves the logits by {result.effect:.3g}, expected above {DIFFERENCE_FACTOR} bounds")
    if result.agreement != 1:
        found.append(f"the likeliest token is the oracle's for {result.agreement:.1%}, expected all")
    if not result.compared >= LEAST_COMPARED:
        found.append(f"only {result.compared:.0%} of the tokens are clear enough to be compared")
    return found


def agreement_of(logits: Array, wanted: Array, bound: float) -> tuple[float, float]:
    """Of logits (tokens, vocab_size) against those that are wanted: (share of the clear tokens whose likeliest next
    token is the same, share of the tokens that are clear). Clear: first and second lie two bounds apart."""
    first_two = np.partition(wanted, -2, axis=1)[:, -2:]  # (tokens, 2)
    clear = first_two[:, 1] - first_two[:, 0] > 2 * bound
    same = logits.argmax(1) == wanted.argmax(1)
    return float(same[clear].mean()) if clear.any() else 0.0, float(clear.mean())


def cosines(logits: Array, wanted: Array) -> Array:
    """Of each token's logits with those that are wanted, (tokens,)."""
    product = (logits * wanted).sum(1)
    found: Array = product / (np.linalg.norm(logits, axis=1) * np.linalg.norm(wanted, axis=1))
    return found


def _excess(case: Case, capped: Observation, expected: Observation, *, own: bool) -> float:
    """How far the worst projection lies above its place, in units of the bound for its state.

    With weights of its own (`own`) the oracle's projections are not this path's, so only the ceiling counts.
    """
    worst = -np.inf
    for layer, tau in case.cap.taus.items():
        axis = case.cap.directions[layer].astype(np.float64)
        states = capped.states[layer].astype(np.float64)
        if states.shape != expected.states[layer].shape or not np.isfinite(states).all():
            return float("inf")
        place = np.full(len(states), tau)
        if case.cap.alpha < 1:
            if own:
                continue
            place = np.maximum(tau, expected.states[layer] @ axis) + _slack(expected)
        scale = np.maximum(1.0, np.abs(states).max(axis=1))
        worst = max(worst, float(((states @ axis - place) / (PROJECTION_BOUND * scale)).max()))
    return worst if np.isfinite(worst) else 0.0


def _slack(expected: Observation) -> float:
    """A soft cap leaves a projection above tau, so it is compared with the oracle's, to what its states may differ."""
    return 1e-4 * float(max(np.abs(states).max() for states in expected.states.values()))
