"""Nine ways to cap wrongly, on each of the three paths. The conformance kit must catch every one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from karma_electric.capping.conformance import Case
from karma_electric.capping.conformance_paths import LlamaCppPath, NumpyPath, PytorchPath
from karma_electric.capping.formula import Cap, cap_hidden_states
from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.capping.oracle import Array
from karma_electric.capping.pytorch import CapHooks
from karma_electric.engines.llama_cpp_model import LlamaCppModel

MUTANTS = (
    "no-op",
    "wrong sign",
    "un-normalised axis",
    "layer off by one",
    "ceiling for floor",
    "prompt tokens only",
    "last token only",
    "alpha ignored",
    "threshold of another layer",
)
AT_REST = 1e30


def rotated(values: list[float]) -> list[float]:
    return [*values[1:], values[0]]


def with_other_taus(cap: Cap) -> Cap:
    return replace(cap, taus=dict(zip(cap.layers, rotated([cap.taus[each] for each in cap.layers]), strict=True)))


class NumpyMutant(NumpyPath):
    def __init__(self, oracle: Any, mutant: str) -> None:
        super().__init__(oracle)
        self.mutant = mutant

    def layers(self, case: Case) -> tuple[int, ...]:
        shift = self.mutant == "layer off by one"
        return tuple(layer - shift for layer in case.cap.layers)

    def lower(self, case: Case, layer: int, hidden: Array) -> Array:
        cap, mutant = case.cap, self.mutant
        if mutant == "layer off by one":
            layer += 1
        if mutant == "threshold of another layer":
            cap = with_other_taus(cap)
        axis, tau, alpha = cap.directions[layer].astype(np.float64), cap.taus[layer], cap.alpha
        lowered = cap_hidden_states(hidden, axis, tau=tau, alpha=alpha)
        match mutant:
            case "no-op":
                return hidden
            case "wrong sign":
                return 2 * hidden - lowered
            case "un-normalised axis":
                return cap_hidden_states(hidden, axis * case.lengths[layer], tau=tau, alpha=alpha)
            case "ceiling for floor":
                return cap_hidden_states(hidden, -axis, tau=-tau, alpha=alpha)
            case "prompt tokens only":
                return hidden if len(hidden) == 1 else lowered
            case "last token only":
                return np.concatenate([hidden[:-1], lowered[-1:]])
            case "alpha ignored":
                return cap_hidden_states(hidden, axis, tau=tau, alpha=1.0)
        return lowered


class PytorchMutant(PytorchPath):
    def __init__(self, model: Any, mutant: str) -> None:
        super().__init__(model)
        self.mutant = mutant

    def install(self, case: Case) -> CapHooks:
        cap, mutant = case.cap, self.mutant
        if mutant == "layer off by one":
            directions = {layer - 1: direction for layer, direction in cap.directions.items()}
            cap = replace(cap, directions=directions, taus={layer - 1: tau for layer, tau in cap.taus.items()})
        elif mutant == "alpha ignored":
            cap = replace(cap, alpha=1.0)
        elif mutant == "threshold of another layer":
            cap = with_other_taus(cap)

        class Mutant(CapHooks):
            def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
                lowered = super()._lower(layer, hidden, real)
                match mutant:
                    case "no-op":
                        return hidden
                    case "wrong sign":
                        return 2 * hidden - lowered
                    case "ceiling for floor":
                        axis = self._direction(layer, hidden.device, hidden.dtype)
                        short = (hidden @ axis - self.cap.taus[layer]).clamp(max=0)
                        return hidden - self.cap.alpha * short[..., None] * axis
                    case "prompt tokens only":
                        return hidden if hidden.shape[1] == 1 else lowered
                    case "last token only":
                        return torch.cat([hidden[:, :-1], lowered[:, -1:]], dim=1)
                return lowered

            def _direction(self, layer: int, device: torch.device, dtype: torch.dtype) -> Tensor:
                scale = case.lengths[layer] if mutant == "un-normalised axis" else 1.0
                return scale * super()._direction(layer, device, dtype)

        return Mutant(self._model, cap, "all")


class LlamaCppMutant(LlamaCppPath):
    mutant: str

    def make_callback(self, model: LlamaCppModel, case: Case) -> CapCallback:
        mutant = self.mutant

        class Mutant(CapCallback):
            def begin(self, rows: int) -> None:
                super().begin(rows)
                rests = {"prompt tokens only": rows == 1, "last token only": rows > 1}
                if mutant in rests:
                    self.set_all_taus(AT_REST) if rests[mutant] else self.restore_taus()

        self.callback = Mutant
        callback = super().make_callback(model, case)
        state = callback._state
        match mutant:
            case "no-op":
                state["write_tensor"] = state["count_bytes"]
            case "wrong sign":
                state["alpha"] = -state["alpha"]
            case "un-normalised axis":
                callback._directions *= np.array([case.lengths[layer] for layer in case.cap.layers])[:, None]
            case "layer off by one":
                callback._slots[:] = np.roll(callback._slots, -1)
            case "ceiling for floor":
                callback._directions *= -1
                callback._taus *= -1
            case "alpha ignored":
                state["alpha"] = 1.0
            case "threshold of another layer":
                callback._taus[:] = rotated(callback._taus.tolist())
        return callback
