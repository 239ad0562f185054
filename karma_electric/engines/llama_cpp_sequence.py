"""One sequence in the memory of a llama.cpp context, decoded so that what was there before leaves no trace.

A token's key and value depend, in their last bits, on the shape of the batch that it was decoded in: a matrix of one
row goes through other code than one of several. So a prompt is always cut in the same places: chunks of CHUNK_TOKENS
from its start, then one batch of what is left (1 to CHUNK_TOKENS tokens). Whole chunks that another prompt shares are
kept; the rest is decoded again. Generated tokens are never kept, and no batch holds tokens of two prompts.

Where `any_cut_gives_the_same` has shown that batches of two or more rows give the same bits whatever their size, a
prompt may be cut anywhere, and all that another prompt shares is kept.

Flash attention is off: with it the shape matters more, and on a CPU it is no faster. Measured on build b11549 with one
model as F32, F16, Q8_0, Q4_1 and Q4_K_M: the logits of a prompt are the same bits whatever was in memory before, and
for 1, 2 and 3 threads; with Q8_0 and Q4_K_M also whatever other sequences of the same context do in between.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_decoder import LlamaCppDecoder, Row
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import IntegrityError

CHUNK_TOKENS = 16  # a CPU is nearly as fast on 16 rows as on 512, and few tokens are decoded twice
LARGEST_CUT = 32  # where any cut gives the same
LEAST_CUT = 2
PROOF_CUTS = ((32, 32, 30), (2, 3, 5, 7, 11, 13, 16, 17, 20), (47, 47))  # of 94 tokens each

Wanted = Literal["none", "last", "all"]


class TokenSequence:
    """The sequence `number` of `decoder`."""

    def __init__(self, decoder: LlamaCppDecoder, number: int = 0) -> None:
        self.any_cut = False  # set it only where `any_cut_gives_the_same`
        self._decoder = decoder
        self._number = number
        self._losses = decoder.losses
        self._layers = 0 if decoder.callback is None else len(decoder.callback.layers)
        self._prompt: Sequence[int] = ()  # that is being read
        self._kept_ids: list[int] = []  # tokens in memory that another prompt may share
        self._fired: list[int] = []  # for each token in memory, in how many layers the cap acted
        self._last_tokens = 0  # of the last batch

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self._decoder.model.vocab_size

    @property
    def length(self) -> int:
        """Tokens in memory."""
        return len(self._fired)

    @property
    def activity(self) -> CapActivity:
        """Of the cap, over the tokens in memory."""
        return CapActivity(len(self._fired) * self._layers, sum(self._fired))

    @property
    def last_activity(self) -> CapActivity:
        """Of the cap, in the last batch."""
        fired = self._fired[len(self._fired) - self._last_tokens :]
        return CapActivity(len(fired) * self._layers, sum(fired))

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
        start, length = self.length, len(self._prompt)
        if self.any_cut:
            left = length - start
            end = length if left <= LARGEST_CUT else start + min(LARGEST_CUT, left - LEAST_CUT)
        else:
            end = start + CHUNK_TOKENS if start < _whole_chunks(length) else length
        logits = self._append(self._prompt[start:end], "last" if end == length else "none")
        if end < length or self.any_cut:
            self._kept_ids.extend(self._prompt[start:end])
        return logits[0] if end == length else None

    def shared_length(self, token_ids: Sequence[int]) -> int:
        """How many of `token_ids` are in memory and would be kept."""
        if self._losses != self._decoder.losses:
            return 0
        shared = common_length([self._kept_ids, token_ids])
        if self.any_cut:
            return max(0, min(shared, len(token_ids) - LEAST_CUT))
        return min(shared, _whole_chunks(len(token_ids))) // CHUNK_TOKENS * CHUNK_TOKENS

    def read_all(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Read from an empty memory; the logits after every token: (tokens, vocab_size)."""
        self.forget()
        chunked = _whole_chunks(len(token_ids))
        logits = np.empty((len(token_ids), self._decoder.model.vocab_size), np.float32)
        for start in range(0, chunked, CHUNK_TOKENS):
            end = start + CHUNK_TOKENS
            logits[start:end] = self._append(token_ids[start:end], "all")
        self._kept_ids.extend(token_ids[:chunked])
        logits[chunked:] = self._append(token_ids[chunked:], "all")
        return logits

    def read_in_cuts(self, token_ids: Sequence[int], cuts: Sequence[int]) -> NDArray[np.float32]:
        """Read from an empty memory, in batches of so many tokens; the logits after every token, as `read_all`."""
        self.forget()
        ends = itertools.accumulate(cuts)
        logits = [self._append(token_ids[end - size : end], "all") for end, size in zip(ends, cuts, strict=True)]
        return np.concatenate(logits)

    def extend(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Decode tokens behind the sequence in memory; the logits after each: (tokens, vocab_size)."""
        parts = range(0, len(token_ids), CHUNK_TOKENS)
        return np.concatenate([self._append(token_ids[start : start + CHUNK_TOKENS], "all") for start in parts])

    def append_decoded(self, fired: int) -> None:
        """Take note of one token that was decoded behind the sequence, in a batch with others', where the cap acted in
        so many layers."""
        self._fired.append(fired)
        self._last_tokens = 1

    def rewind(self, length: int) -> None:
        """Forget the tokens from position `length` on."""
        del self._fired[length:]
        del self._kept_ids[length:]
        self._last_tokens = 0
        self._decoder.remove(self._number, length)

    def forget(self) -> None:
        """Empty the memory of this sequence."""
        self._losses = self._decoder.losses
        self.rewind(0)

    def _append(self, token_ids: Sequence[int], wanted: Wanted) -> NDArray[np.float32]:
        """Decode one batch behind the sequence in memory; the wanted logits, (0, 1 or tokens, vocab_size)."""
        if self._losses != self._decoder.losses:
            raise IntegrityError(f"{self._decoder.model.path}: a failed decode emptied the memory; ask again")
        start, last = self.length, len(token_ids) - 1
        rows = [
            Row(token, start + index, (self._number,), wanted == "all" or (wanted == "last" and index == last))
            for index, token in enumerate(token_ids)
        ]
        logits, _ = self._decoder.decode(rows)
        callback = self._decoder.callback
        self._fired.extend([0] * len(rows) if callback is None else callback.fired_by_row.tolist())
        self._last_tokens = len(rows)
        return logits


def any_cut_gives_the_same(sequence: TokenSequence) -> bool:
    """Read one text in several cuts, and compare all bits: does the size of a batch of two or more rows matter?

    On llama.cpp b11549 with AVX2 it does not matter for Q8_0 (measured: 25 ways to cut 71 tokens); another build or
    machine may have kernels of which that is not true.
    """
    size, count = sequence.vocab_size, sum(PROOF_CUTS[0])
    token_ids = [(7919 * place + 17) % size for place in range(count)]
    first, *others = (sequence.read_in_cuts(token_ids, cuts) for cuts in PROOF_CUTS)
    sequence.forget()
    return all(np.array_equal(first, other) for other in others)


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
