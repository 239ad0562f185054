"""A llama.cpp context for measuring: any batch of tokens in, all logits and the capped states out.

Engines answer conversations; this one only decodes, so that the conformance kit and the benchmarks see what a capped
context computes, and nothing else.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.engines import llama_cpp_binding as binding
from karma_electric.engines.llama_cpp_model import LlamaCppModel
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError, IntegrityError, SetupError

CacheType = Literal["f16", "f32"]

_CACHE_TYPES = {"f16": binding.GGML_TYPE_F16, "f32": binding.GGML_TYPE_F32}


@dataclass(frozen=True, slots=True)
class Token:
    """One row of a batch."""

    id: int
    position: int
    sequence: int = 0


class LlamaCppRunner:
    """A context of `model` with `callback`, if one is given. A context manager; free it before the model."""

    def __init__(
        self,
        model: LlamaCppModel,
        callback: CapCallback | None,
        *,
        context_tokens: int,
        batch_tokens: int = 64,
        sequences: int = 1,
        threads: int = 1,
        cache_type: CacheType = "f16",
    ) -> None:
        self._model, self._library, self._callback = model, model.library, callback
        self._batch_tokens = batch_tokens
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = context_tokens
        parameters.n_batch = parameters.n_ubatch = batch_tokens
        parameters.n_seq_max = sequences
        parameters.kv_unified = True  # keeps the order of a batch
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = _CACHE_TYPES[cache_type]
        parameters.flash_attn_type = binding.FLASH_ATTENTION_DISABLED
        if callback is not None:
            callback.install(parameters)
        binding.recent_errors()
        self._pointer = self._library.llama_init_from_model(model.pointer, parameters)
        if not self._pointer:
            raise SetupError(f"{model.path}: no context of {context_tokens} tokens ({binding.recent_errors()})")

    def decode(self, tokens: Sequence[Token], *, all_logits: bool = True) -> CapActivity:
        """Decode one batch. Raises IntegrityError where llama.cpp or the cap fails.

        Without `all_logits` those of the last row are computed, and the last block sees that row only.
        """
        count = len(tokens)
        if not 0 < count <= self._batch_tokens:
            raise InputError(f"a batch of {count} tokens, expected 1 to {self._batch_tokens}")
        sequences = (ctypes.c_int32 * count)(*(token.sequence for token in tokens))
        width = ctypes.sizeof(ctypes.c_int32)
        batch = binding.Batch(
            n_tokens=count,
            token=(ctypes.c_int32 * count)(*(token.id for token in tokens)),
            embd=None,
            pos=(ctypes.c_int32 * count)(*(token.position for token in tokens)),
            n_seq_id=(ctypes.c_int32 * count)(*[1] * count),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * count)(
                *(ctypes.pointer(ctypes.c_int32.from_buffer(sequences, width * row)) for row in range(count))
            ),
            logits=(ctypes.c_int8 * count)(*(all_logits or row == count - 1 for row in range(count))),
        )
        if self._callback is not None:
            self._callback.begin(count)
        code = self._library.llama_decode(self._pointer, batch)
        if self._callback is not None:
            self._callback.raise_error()
        if code != 0:
            raise IntegrityError(f"{self._model.path}: llama_decode returned {code} ({binding.recent_errors()})")
        return CapActivity(0, 0) if self._callback is None else self._callback.finish()

    def logits(self, row: int) -> NDArray[np.float32]:
        """Of a row of the last batch, (vocab_size,)."""
        address = self._library.llama_get_logits_ith(self._pointer, row)
        if not address:
            raise IntegrityError(f"{self._model.path}: llama.cpp gives no logits for row {row} of the batch")
        return np.ctypeslib.as_array(address, (self._model.vocab_size,)).copy()

    def forget(self) -> None:
        """Empty the memory of all sequences."""
        self._library.llama_memory_clear(self._library.llama_get_memory(self._pointer), True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pointer, self._pointer = self._pointer, None
        if pointer:
            self._library.llama_free(pointer)
