"""Questions answered at once by llama.cpp: one token of each in every decode call, which always has the same shape.

Decoding one token reads all weights for one row; with SLOTS rows it takes as long as three calls of one row. The last
bits of a row depend on how many rows there are (a matrix of one row goes through other code), but not on what the
other rows are: each slot has a stream of its own in memory, and a slot that has nothing to decode adds a row that is
thrown away. So an answer is the same bits in any slot and in any company. Prompts are read slot by slot, in the cuts
of llama_cpp_sequence.py.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_decoder import LlamaCppDecoder, Row
from karma_electric.engines.llama_cpp_sequence import TokenSequence, any_cut_gives_the_same
from karma_electric.engines.questions import Answer, Question, T

SLOTS: Final = 8

# Yields tokens to decode in its sequence, is sent the logits after each, (vocab_size,), and returns an answer.
Steps = Generator[int, NDArray[np.float32], T]
OpenSequences = Callable[[], tuple[LlamaCppDecoder, Sequence[TokenSequence]]]


class LlamaCppParallelAnswers:
    """Implements ParallelAnswers on SLOTS sequences of one decoder, which nobody else uses.

    They are opened with the first question. `begin` makes the steps of a question in a sequence. Where a decode fails,
    all open questions are lost.
    """

    slots = SLOTS
    arithmetic = f"{SLOTS} rows"

    def __init__(
        self, open_sequences: OpenSequences, begin: Callable[[TokenSequence, Question], Steps[Answer]]
    ) -> None:
        self._open_sequences = open_sequences
        self._begin = begin
        self._opened: tuple[LlamaCppDecoder, Sequence[TokenSequence]] | None = None
        self._answering: dict[int, Steps[Answer]] = {}  # by slot
        self._tokens: dict[int, int] = {}  # slot -> what it is to decode next
        self._answered: list[tuple[int, Answer]] = []

    def submit(self, slot: int, question: Question) -> None:
        """Open a question; its prompt is read now."""
        if self._opened is None:
            self._opened = self._open_sequences()
            any_cut = any_cut_gives_the_same(self._opened[1][0])
            for sequence in self._opened[1]:
                sequence.any_cut = any_cut
        self._answering[slot] = self._begin(self._opened[1][slot], question)
        self._advance(slot, None)

    def step(self) -> list[tuple[int, Answer]]:
        """Those that are answered, with their slots; where none is yet, after one decode call for all of them."""
        if not self._answered and self._opened is not None:
            self._decode(*self._opened)
        answered, self._answered = self._answered, []
        return answered

    def close(self) -> None:
        """Give the memory back."""
        if self._opened is not None:
            self._opened[0].free()

    def _decode(self, decoder: LlamaCppDecoder, sequences: Sequence[TokenSequence]) -> None:
        tokens, self._tokens = self._tokens, {}
        rows = [
            Row(tokens.get(slot, 0), sequence.length, (slot,), slot in tokens)
            for slot, sequence in enumerate(sequences)
        ]
        logits, _ = decoder.decode(rows)
        fired = [0] * SLOTS if decoder.callback is None else decoder.callback.fired_by_row.tolist()
        for slot, sequence in enumerate(sequences):
            if slot in tokens:
                sequence.append_decoded(fired[slot])
            else:
                decoder.remove(slot, sequence.length)
        for slot, found in zip(sorted(tokens), logits, strict=True):
            self._advance(slot, found)

    def _advance(self, slot: int, logits: NDArray[np.float32] | None) -> None:
        steps = self._answering[slot]
        try:
            self._tokens[slot] = next(steps) if logits is None else steps.send(logits)
        except StopIteration as stop:
            del self._answering[slot]
            self._answered.append((slot, stop.value))


def answer_alone(sequence: TokenSequence, steps: Steps[T]) -> T:
    """Take the steps with decode calls of one token."""
    try:
        token = next(steps)
        while True:
            token = steps.send(sequence.extend([token])[-1])
    except StopIteration as stop:
        result: T = stop.value
        return result
