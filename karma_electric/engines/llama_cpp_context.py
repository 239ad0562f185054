"""One sequence in the memory of a llama.cpp context, decoded so that what was there before leaves no trace.

A token's key and value depend, in their last bits, on the shape of the batch that it was decoded in: a matrix of one
row goes through other code than one of several. So a prompt is always cut in the same places: chunks of CHUNK_TOKENS
from its start, then one batch of what is left (1 to CHUNK_TOKENS tokens). Whole chunks that another prompt shares are
kept; the rest is decoded again. Generated tokens are never kept.

Flash attention is off: with it the shape matters more, and on a CPU it is no faster. Measured on build b11549 with one
model as F32, F16, Q8_0, Q4_1 and Q4_K_M: the logits of a prompt are the same bits whatever was in memory before, and
for 1, 2 and 3 threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.engines import llama_cpp_binding as binding
from karma_electric.engines.llama_cpp_model import LlamaCppModel
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import IntegrityError, SetupError

CHUNK_TOKENS = 16  # a CPU is nearly as fast on 16 rows as on 512, and few tokens are decoded twice
BATCH_TOKENS = 64  # of a batch of branches
MAX_BRANCHES = 31

CacheType = Literal["f16", "f32"]
Wanted = Literal["none", "last", "all"]
TokenPath = tuple[int, ...]

_CACHE_TYPES = {"f16": binding.GGML_TYPE_F16, "f32": binding.GGML_TYPE_F32}


@dataclass(frozen=True, slots=True)
class _Row:
    """One token of a batch. Sequence 0 is the one in memory, others are branches of it."""

    token: int
    position: int
    sequences: tuple[int, ...]
    wanted: bool  # whether its logits are read


class LlamaCppContext:
    """A context of `model`, capped by `cap` when one is given. Not for two threads at once."""

    def __init__(
        self, model: LlamaCppModel, *, context_tokens: int, threads: int, cache_type: CacheType, cap: CapCallback | None
    ) -> None:
        self._model = model
        self._library = model.library
        self._cap = cap
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = context_tokens
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
        parameters.n_seq_max = 1 + MAX_BRANCHES
        parameters.kv_unified = True
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
                f"{model.path}: no context of {context_tokens} tokens ({reason}); ask for fewer, or free memory"
            )
        self._memory = self._library.llama_get_memory(self.pointer)
        # The last block computes only the rows whose logits are wanted; a cap there must see them all.
        self._all_outputs = cap is not None and cap.caps_last_block
        self._chunk_ids: list[int] = []  # tokens of the whole prompt chunks in memory
        self._batches: list[tuple[int, CapActivity]] = []  # (length of the sequence after it, activity of it)

    @property
    def length(self) -> int:
        """Tokens in memory."""
        return self._batches[-1][0] if self._batches else 0

    @property
    def activity(self) -> CapActivity:
        """Of the cap, over the tokens in memory."""
        activities = [activity for _, activity in self._batches]
        return CapActivity(sum(a.positions for a in activities), sum(a.fired for a in activities))

    def read(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Make `token_ids` (at least one) the sequence in memory; the logits after its last token, (vocab_size,)."""
        chunked = _whole_chunks(len(token_ids))
        kept = common_length([self._chunk_ids, token_ids[:chunked]]) // CHUNK_TOKENS * CHUNK_TOKENS
        self.rewind(kept)
        for start in range(kept, chunked, CHUNK_TOKENS):
            self._read_chunk(token_ids[start : start + CHUNK_TOKENS], "none")
        logits: NDArray[np.float32] = self._append(token_ids[chunked:], "last")[0]
        return logits

    def read_all(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The same from an empty memory, with the logits after every token: (tokens, vocab_size)."""
        self.rewind(0)
        chunked = _whole_chunks(len(token_ids))
        logits = np.empty((len(token_ids), self._model.vocab_size), np.float32)
        for start in range(0, chunked, CHUNK_TOKENS):
            end = start + CHUNK_TOKENS
            logits[start:end] = self._read_chunk(token_ids[start:end], "all")
        logits[chunked:] = self._append(token_ids[chunked:], "all")
        return logits

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Decode tokens behind the sequence in memory; the logits after each: (tokens, vocab_size)."""
        parts = range(0, len(token_ids), CHUNK_TOKENS)
        return np.concatenate([self._append(token_ids[start : start + CHUNK_TOKENS], "all") for start in parts])

    def branch(self, paths: Sequence[TokenPath]) -> dict[TokenPath, NDArray[np.float32]]:
        """The logits after every leading part of every path, as continuations of the sequence in memory.

        The memory is left as it was. Branches are decoded together, each token attending to its own path only.
        """
        found: dict[TokenPath, NDArray[np.float32]] = {}
        for path in (path for path in paths if len(path) > BATCH_TOKENS):
            start = self.length
            found |= {path[: index + 1]: row for index, row in enumerate(self.extend(path))}
            self.rewind(start)
        for group in group_paths([path for path in paths if len(path) <= BATCH_TOKENS]):
            nodes = leading_parts(group)
            rows = [
                _Row(
                    token=node[-1],
                    position=self.length + len(node) - 1,
                    sequences=tuple(number for number, path in enumerate(group, 1) if path[: len(node)] == node),
                    wanted=True,
                )
                for node in nodes
            ]
            for number in range(1, len(group) + 1):
                self._library.llama_memory_seq_cp(self._memory, 0, number, -1, -1)
            logits, _ = self._decode(rows)
            found |= dict(zip(nodes, logits, strict=True))
            for number in range(1, len(group) + 1):
                self._library.llama_memory_seq_rm(self._memory, number, -1, -1)
        return found

    def rewind(self, length: int) -> None:
        """Forget the tokens from position `length` on, which must be the end of a batch."""
        while self.length > length:
            self._batches.pop()
        del self._chunk_ids[self.length :]
        if not self._library.llama_memory_seq_rm(self._memory, 0, length, -1):
            self.forget()
            raise IntegrityError(f"{self._model.path}: its memory cannot be cut back to {length} tokens; not supported")

    def forget(self) -> None:
        """Empty the memory."""
        self._batches.clear()
        self._chunk_ids.clear()
        self._library.llama_memory_clear(self._memory, True)

    def free(self) -> None:
        """Give the memory back."""
        pointer, self.pointer = self.pointer, None
        if pointer:
            self._library.llama_free(pointer)

    def _read_chunk(self, token_ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32]:
        logits = self._append(token_ids, wanted)
        self._chunk_ids.extend(token_ids)
        return logits

    def _append(self, token_ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32]:
        """Decode one batch behind the sequence in memory; the wanted logits, (0, 1 or tokens, vocab_size)."""
        start, last = self.length, len(token_ids) - 1
        rows = [
            _Row(token, start + index, (0,), wanted == "all" or (wanted == "last" and index == last))
            for index, token in enumerate(token_ids)
        ]
        logits, activity = self._decode(rows)
        self._batches.append((start + len(rows), activity))
        return logits

    def _decode(self, rows: Sequence[_Row]) -> tuple[NDArray[np.float32], CapActivity]:
        """Decode one batch: (the wanted logits, (wanted rows, vocab_size); the cap's activity in it)."""
        wanted = [index for index, row in enumerate(rows) if row.wanted]
        logits = np.empty((len(wanted), self._model.vocab_size), np.float32)
        try:
            activity = self._run(rows)
            for place, index in enumerate(wanted):
                logits[place] = self._logits(index)
        except BaseException:
            self.forget()  # what is in memory may be half of a batch, or uncapped
            raise
        return logits, activity

    def _run(self, rows: Sequence[_Row]) -> CapActivity:
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
        if self._cap is not None:
            self._cap.begin(count)
        binding.recent_errors()
        code = self._library.llama_decode(self.pointer, batch)
        if self._cap is not None:
            self._cap.raise_error()
        if code != 0:
            raise IntegrityError(
                f"{self._model.path}: llama_decode returned {code} for {count} tokens at position {rows[0].position} "
                f"({binding.recent_errors() or 'no reason given'})"
            )
        return CapActivity(0, 0) if self._cap is None else self._cap.finish()

    def _logits(self, row: int) -> NDArray[np.float32]:
        """A view of the logits of a row of the last batch, (vocab_size,), valid until the next decode."""
        address = self._library.llama_get_logits_ith(self.pointer, row)
        if not address:
            raise IntegrityError(f"{self._model.path}: llama.cpp gives no logits for row {row} of the batch")
        logits = np.ctypeslib.as_array(address, (self._model.vocab_size,))
        if not np.isfinite(logits).all():
            token = int(np.flatnonzero(~np.isfinite(logits))[0])
            raise IntegrityError(
                f"{self._model.path}: the logit of token {token} is {logits[token]}; the model or the cap is broken"
            )
        return logits


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def leading_parts(paths: Sequence[TokenPath]) -> list[TokenPath]:
    """Every leading part of every path, once, shorter ones first."""
    parts = {path[:length] for path in paths for length in range(1, len(path) + 1)}
    return sorted(parts, key=lambda part: (len(part), part))


def group_paths(paths: Sequence[TokenPath]) -> Iterator[list[TokenPath]]:
    """The paths in groups that fit into one batch of branches. No path is longer than BATCH_TOKENS."""
    group: list[TokenPath] = []
    for path in paths:
        if len(group) == MAX_BRANCHES or len(leading_parts([*group, path])) > BATCH_TOKENS:
            yield group
            group = []
        group.append(path)
    if group:
        yield group


def _whole_chunks(count: int) -> int:
    """How many of `count` tokens lie in chunks that may be kept: at least the last token is decoded for its logits."""
    return (count - 1) // CHUNK_TOKENS * CHUNK_TOKENS
