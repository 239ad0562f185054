"""One sequence in the memory of a llama.cpp context, decoded so that what was there before leaves no trace.

A token's key and value depend, in their last bits, on the shape of the batch that it was decoded in: a matrix of one
row goes through other code than one of several. So a prompt is always cut in the same places: chunks of CHUNK_TOKENS
from its start, then one batch of what is left (1 to CHUNK_TOKENS tokens). Whole chunks that another prompt shares are
kept; the rest is decoded again. Generated tokens are never kept, and no batch holds tokens of two sequences.

Flash attention is off: with it the shape matters more, and on a CPU it is no faster. Measured on build b11549 with one
model as F32, F16, Q8_0, Q4_1 and Q4_K_M: the logits of a prompt are the same bits whatever was in memory before, and
for 1, 2 and 3 threads; with Q8_0 and Q4_K_M also whatever other sequences of the same context do in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_decoder import LlamaCppDecoder, Row
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import IntegrityError

CHUNK_TOKENS = 16  # a CPU is nearly as fast on 16 rows as on 512, and few tokens are decoded twice

Wanted = Literal["none", "last", "all"]


class TokenSequence:
    """The sequence `number` of `decoder`."""

    def __init__(self, decoder: LlamaCppDecoder, number: int = 0) -> None:
        self._decoder = decoder
        self._number = number
        self._losses = decoder.losses
        self._prompt: Sequence[int] = ()  # that is being read
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

    @property
    def last_activity(self) -> CapActivity:
        """Of the cap, in the last batch."""
        return self._batches[-1][1] if self._batches else CapActivity(0, 0)

    def read(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Make `token_ids` (at least one) the sequence in memory; the logits after its last token, (vocab_size,)."""
        self.start(token_ids)
        while (logits := self.read_on()) is None:
            pass
        return logits

    def start(self, token_ids: Sequence[int]) -> int:
        """Get ready to `read_on` these tokens; how many of them are in memory already."""
        if self._losses != self._decoder.losses:
            self.forget()
        self._prompt = token_ids
        kept = self.shared_length(token_ids)
        self.rewind(kept)
        return kept

    def read_on(self) -> NDArray[np.float32] | None:
        """Decode the next batch of the prompt; the logits after its last token, (vocab_size,), once that was read."""
        start, chunked = self.length, _whole_chunks(len(self._prompt))
        if start < chunked:
            self._read_chunk(self._prompt[start : start + CHUNK_TOKENS], "none")
            return None
        logits: NDArray[np.float32] = self._append(self._prompt[chunked:], "last")[0]
        return logits

    def shared_length(self, token_ids: Sequence[int]) -> int:
        """How many of `token_ids` are in memory and would be kept."""
        if self._losses != self._decoder.losses:
            return 0
        shared = common_length([self._chunk_ids, token_ids[: _whole_chunks(len(token_ids))]])
        return shared // CHUNK_TOKENS * CHUNK_TOKENS

    def read_all(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Read from an empty memory; the logits after every token: (tokens, vocab_size)."""
        self.forget()
        chunked = _whole_chunks(len(token_ids))
        logits = np.empty((len(token_ids), self._decoder.model.vocab_size), np.float32)
        for start in range(0, chunked, CHUNK_TOKENS):
            end = start + CHUNK_TOKENS
            logits[start:end] = self._read_chunk(token_ids[start:end], "all")
        logits[chunked:] = self._append(token_ids[chunked:], "all")
        return logits

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Decode tokens behind the sequence in memory; the logits after each: (tokens, vocab_size)."""
        parts = range(0, len(token_ids), CHUNK_TOKENS)
        return np.concatenate([self._append(token_ids[start : start + CHUNK_TOKENS], "all") for start in parts])

    def rewind(self, length: int) -> None:
        """Forget the tokens from position `length` on, which must be the end of a batch."""
        while self.length > length:
            self._batches.pop()
        del self._chunk_ids[self.length :]
        self._decoder.remove(self._number, length)

    def forget(self) -> None:
        """Empty the memory of this sequence."""
        self._batches.clear()
        self._chunk_ids.clear()
        self._losses = self._decoder.losses
        self._decoder.remove(self._number, 0)

    def _read_chunk(self, token_ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32]:
        logits = self._append(token_ids, wanted)
        self._chunk_ids.extend(token_ids)
        return logits

    def _append(self, token_ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32]:
        """Decode one batch behind the sequence in memory; the wanted logits, (0, 1 or tokens, vocab_size)."""
        if self._losses != self._decoder.losses:
            raise IntegrityError(f"{self._decoder.model.path}: a failed decode emptied the memory; ask again")
        start, last = self.length, len(token_ids) - 1
        rows = [
            Row(token, start + index, (self._number,), wanted == "all" or (wanted == "last" and index == last))
            for index, token in enumerate(token_ids)
        ]
        logits, activity = self._decoder.decode(rows)
        self._batches.append((start + len(rows), activity))
        return logits


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many leading tokens all sequences share."""
    length = 0
    for tokens in zip(*sequences, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return length


def _whole_chunks(count: int) -> int:
    """How many of `count` tokens lie in chunks that may be kept: at least the last token is decoded for its logits."""
    return (count - 1) // CHUNK_TOKENS * CHUNK_TOKENS
