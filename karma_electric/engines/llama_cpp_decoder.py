"""A llama.cpp context: batches of tokens go in, logits come out, keys and values of earlier tokens stay in its memory.

With one sequence the memory is a single stream, and branches of that sequence may share its cells. With several, each
has a stream of its own: what one sequence computes then depends neither on the others nor on where they lie.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.engines import llama_cpp_binding as binding
from karma_electric.engines.llama_cpp_model import LlamaCppModel
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import IntegrityError, SetupError

BATCH_TOKENS = 64  # of a batch of branches
MAX_BRANCHES = 31

CacheType = Literal["f16", "f32"]

_CACHE_TYPES = {"f16": binding.GGML_TYPE_F16, "f32": binding.GGML_TYPE_F32}


@dataclass(frozen=True, slots=True)
class Row:
    """One token of a batch."""

    token: int
    position: int
    sequences: tuple[int, ...]  # that it belongs to
    wanted: bool  # whether its logits are read


class LlamaCppDecoder:
    """A context of `model`, capped by `cap` when one is given. Not for two threads at once.

    `context_tokens` is the room of each of `sequences`. With one sequence, numbers 1 to MAX_BRANCHES are its branches.
    """

    def __init__(
        self,
        model: LlamaCppModel,
        *,
        context_tokens: int,
        threads: int,
        cache_type: CacheType,
        cap: CapCallback | None,
        sequences: int = 1,
    ) -> None:
        self.model = model
        self.losses = 0  # how often the memory was lost
        self._library = model.library
        self.callback = cap
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = context_tokens * sequences
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = 1 + MAX_BRANCHES if sequences == 1 else sequences
        parameters.kv_unified = sequences == 1
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = _CACHE_TYPES[cache_type]
        parameters.flash_attn_type = binding.FLASH_ATTENTION_DISABLED
        if cap is not None:
            cap.install(parameters)
        binding.recent_errors()
        self.pointer = self._library.llama_init_from_model(model.pointer, parameters)
        if not self.pointer:
            reason = binding.recent_errors() or "no reason given"
            raise SetupError(
                f"{model.path}: no context of {sequences} x {context_tokens} tokens ({reason}); ask for fewer, or "
                "free memory"
            )
        self._memory = self._library.llama_get_memory(self.pointer)
        # The last block computes only the rows whose logits are wanted; a cap there must see them all.
        self._all_outputs = cap is not None and cap.caps_last_block

    def decode(self, rows: Sequence[Row]) -> tuple[NDArray[np.float32], CapActivity]:
        """Decode one batch: (the wanted logits, (wanted rows, vocab_size); the cap's activity in it).

        Whatever is raised, the memory is lost: it may hold half of a batch, or uncapped states.
        """
        wanted = [index for index, row in enumerate(rows) if row.wanted]
        logits = np.empty((len(wanted), self.model.vocab_size), np.float32)
        try:
            activity = self._run(rows)
            for place, index in enumerate(wanted):
                logits[place] = self._logits(index)
        except BaseException:
            self.clear()
            raise
        return logits, activity

    def remove(self, sequence: int, from_position: int) -> None:
        """Forget the tokens of a sequence from a position on."""
        if not self._library.llama_memory_seq_rm(self._memory, sequence, from_position, -1):
            self.clear()
            raise IntegrityError(f"{self.model.path}: its memory cannot be cut back to {from_position} tokens")

    def copy(self, source: int, target: int) -> None:
        """Let all tokens of `source` belong to `target`, too."""
        self._library.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def clear(self) -> None:
        """Lose the memory of every sequence, with its data: a NaN that stayed there would spread to what comes."""
        self.losses += 1
        self._library.llama_memory_clear(self._memory, True)

    def free(self) -> None:
        """Give the memory back."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._library.llama_free(pointer)

    def _run(self, rows: Sequence[Row]) -> CapActivity:
        count = len(rows)
        sequences = [(ctypes.c_int32 * len(row.sequences))(*row.sequences) for row in rows]
        batch = binding.Batch(
            n_tokens=count,
            token=(ctypes.c_int32 * count)(*(row.token for row in rows)),
            embd=None,
            pos=(ctypes.c_int32 * count)(*(row.position for row in rows)),
            n_seq_id=(ctypes.c_int32 * count)(*(len(row.sequences) for row in rows)),
            seq_id=(ctypes.POINTER(ctypes.c_int32) * count)(
                *(ctypes.cast(each, ctypes.POINTER(ctypes.c_int32)) for each in sequences)
            ),
            logits=(ctypes.c_int8 * count)(*(self._all_outputs or row.wanted for row in rows)),
        )
        if self.callback is not None:
            self.callback.begin(count)
        binding.recent_errors()
        code = self._library.llama_decode(self.pointer, batch)
        if self.callback is not None:
            self.callback.raise_error()
        if code != 0:
            raise IntegrityError(
                f"{self.model.path}: llama_decode returned {code} for {count} tokens at position {rows[0].position} "
                f"({binding.recent_errors() or 'no reason given'})"
            )
        return CapActivity(0, 0) if self.callback is None else self.callback.finish()

    def _logits(self, row: int) -> NDArray[np.float32]:
        """A view of the logits of a row of the last batch, (vocab_size,), valid until the next decode."""
        address = self._library.llama_get_logits_ith(self.pointer, row)
        if not address:
            raise IntegrityError(f"{self.model.path}: llama.cpp gives no logits for row {row} of the batch")
        logits = np.ctypeslib.as_array(address, (self.model.vocab_size,))
        if not np.isfinite(logits).all():
            token = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise IntegrityError(
                f"{self.model.path}: the logit of token {token} is {logits[token]}; the model or the cap is broken"
            )
        return logits
