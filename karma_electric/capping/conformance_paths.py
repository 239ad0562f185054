"""The three ways to compute a capped model, as the conformance kit runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.capping.conformance import Case, Observation
from karma_electric.capping.formula import cap_hidden_states
from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.capping.llama_cpp_runner import CacheType, LlamaCppRunner, Token
from karma_electric.capping.oracle import Array, Memory, Oracle
from karma_electric.capping.pytorch import CapHooks, decoder_blocks
from karma_electric.engines.llama_cpp_model import LlamaCppModel

FLOAT64_BOUND = 1e-9
FLOAT32_BOUND = 1e-4
PYTORCH_BOUND = 5e-4  # float32: on a 135M model transformers is 1.2e-4 from the oracle without any cap
FLOAT16_BOUND = 0.1

_CHUNK_TOKENS = 16  # the prompt goes to llama.cpp in several batches, as the engine gives it


class NumpyPath:
    """The oracle's model under the formula of formula.py, in float64."""

    name = "numpy float64"
    logit_bound: float | None = FLOAT64_BOUND

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    def run(self, case: Case, *, capped: bool) -> Observation:
        memory, states = Memory.empty(), {layer: list[Array]() for layer in case.cap.layers}

        def lower(layer: int, hidden: Array) -> Array:
            lowered = self.lower(case, layer, hidden) if capped and layer in self.layers(case) else hidden
            if layer in states:
                states[layer].append(lowered)
            return lowered

        parts = [case.prompt, *((token,) for token in case.answer)]
        logits = [self._oracle.forward(part, memory, lower) for part in parts]
        return Observation(np.concatenate(logits), {layer: np.concatenate(rows) for layer, rows in states.items()})

    def layers(self, case: Case) -> tuple[int, ...]:
        """The blocks whose output is capped."""
        return case.cap.layers

    def lower(self, case: Case, layer: int, hidden: Array) -> Array:
        """The cap of one block's output."""
        cap = case.cap
        return cap_hidden_states(hidden, cap.directions[layer], tau=cap.taus[layer], alpha=cap.alpha)


class PytorchPath:
    """A Hugging Face model under the hooks of pytorch.py, with a KV cache."""

    hooks: type[CapHooks] = CapHooks

    def __init__(self, model: Any, *, logit_bound: float | None = PYTORCH_BOUND) -> None:
        self._model = model
        self.logit_bound = logit_bound

    @property
    def name(self) -> str:
        return f"PyTorch {str(self._model.dtype).removeprefix('torch.')}"

    def run(self, case: Case, *, capped: bool) -> Observation:
        states: dict[int, list[Array]] = {layer: [] for layer in case.cap.layers}
        hooks = self.install(case) if capped else None
        handles = [
            decoder_blocks(self._model).blocks[layer].register_forward_hook(_recorder(states[layer]))
            for layer in case.cap.layers
        ]
        try:
            logits = self._read(case)
        finally:
            for handle in handles:
                handle.remove()
            if hooks is not None:
                hooks.remove()
        return Observation(logits, {layer: np.concatenate(rows) for layer, rows in states.items()})

    def install(self, case: Case) -> CapHooks:
        """Put the cap on the model."""
        return self.hooks(self._model, case.cap, "all")

    def _read(self, case: Case) -> Array:
        from transformers import DynamicCache

        cache, found = DynamicCache(config=self._model.config), []
        for part in (list(case.prompt), *([token] for token in case.answer)):
            ids = torch.tensor([part], device=self._model.device)
            with torch.inference_mode():
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True)
            found.append(output.logits[0].double().cpu().numpy())
        return np.concatenate(found)


def _recorder(rows: list[Array]) -> Any:
    """A hook that runs after the cap's and keeps what goes on to the next block."""

    def see(_module: Any, _inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        rows.append(hidden[0].double().cpu().numpy())

    return see


class LlamaCppPath:
    """A GGUF file in llama.cpp under the callback; states are read back from llama.cpp after the cap."""

    callback: type[CapCallback] = CapCallback

    def __init__(self, path: Path, *, name: str, logit_bound: float | None, cache_type: CacheType) -> None:
        self._path, self._cache_type = path, cache_type
        self._name = name
        self.logit_bound = logit_bound

    @property
    def name(self) -> str:
        return f"llama.cpp {self._name}"

    def run(self, case: Case, *, capped: bool) -> Observation:
        model = LlamaCppModel(self._path)
        try:
            callback = self.make_callback(model, case) if capped else None
            tokens = len(case.token_ids)
            with LlamaCppRunner(model, callback, context_tokens=tokens + 8, cache_type=self._cache_type) as runner:
                return _read(runner, callback, case)
        finally:
            model.free()

    def make_callback(self, model: LlamaCppModel, case: Case) -> CapCallback:
        """What caps the context."""
        return self.callback(
            model.library,
            case.cap,
            hidden_size=model.hidden_size,
            blocks=model.blocks,
            max_rows=_CHUNK_TOKENS,
            record=True,
        )


def _read(runner: LlamaCppRunner, callback: CapCallback | None, case: Case) -> Observation:
    tokens = [Token(token, position) for position, token in enumerate(case.token_ids)]
    start = len(case.prompt)
    batches = [tokens[at : min(at + _CHUNK_TOKENS, start)] for at in range(0, start, _CHUNK_TOKENS)]
    batches += [[token] for token in tokens[start:]]
    logits: list[NDArray[np.float32]] = []
    states: Mapping[int, list[NDArray[np.float32]]] = {layer: [] for layer in case.cap.layers}
    for batch in batches:
        runner.decode(batch)
        logits.extend(runner.logits(row) for row in range(len(batch)))
        for layer, recorded in callback.recorded.items() if callback else ():
            states[layer].append(recorded)
    kept = {layer: np.concatenate(rows) for layer, rows in states.items() if rows}
    return Observation(np.stack(logits), kept)
