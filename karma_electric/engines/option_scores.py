"""Log-probabilities of several continuations of one prompt, with few decodes.

The continuations form a trie below what all of them and the bare prompt share; the logits after its inner nodes are
enough. A context decodes all nodes together; a sequence among others goes from node to node.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_context import LlamaCppContext, TokenPath, leading_parts
from karma_electric.engines.llama_cpp_sequence import TokenSequence, common_length
from karma_electric.engines.sampling import log_softmax
from karma_electric.errors import InputError


def score_options(context: LlamaCppContext, bare: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[float]:
    """The sum of log-probabilities, in nats, of each sequence's tokens after what all of them and `bare` share."""
    shared = _shared_length(bare, sequences)
    tails = [tuple(sequence[shared:]) for sequence in sequences]
    after: dict[TokenPath, NDArray[np.float64]] = {(): log_softmax(context.read(list(bare[:shared])))}
    after |= {path: log_softmax(row) for path, row in context.branch(branches(tails)).items()}
    return _sums(tails, after)


def scores_by_steps(
    sequence: TokenSequence, bare: Sequence[int], sequences: Sequence[Sequence[int]]
) -> Generator[int, NDArray[np.float32], list[float]]:
    """As `score_options`, but yields the tokens to decode behind `sequence`, and is sent the logits after each."""
    shared = _shared_length(bare, sequences)
    tails = [tuple(each[shared:]) for each in sequences]
    after: dict[TokenPath, NDArray[np.float64]] = {(): log_softmax(sequence.read(list(bare[:shared])))}
    for path in sorted(leading_parts(branches(tails))):  # sorted, each node comes right after its parent's others
        sequence.rewind(shared + len(path) - 1)
        after[path] = log_softmax((yield path[-1]))
    return _sums(tails, after)


def branches(tails: Sequence[TokenPath]) -> list[TokenPath]:
    """The paths to decode, sorted: each tail but its last token, less those that another one starts with."""
    paths = {tail[:-1] for tail in tails} - {()}
    inner = {path[:length] for path in paths for length in range(1, len(path))}
    return sorted(paths - inner)


def _shared_length(bare: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    shared = common_length([bare, *sequences])
    if not 0 < shared < min(len(sequence) for sequence in sequences):
        raise InputError("an option shares no token with the prompt, or adds none; expected a prompt, then the option")
    return shared


def _sums(tails: Sequence[TokenPath], after: Mapping[TokenPath, NDArray[np.float64]]) -> list[float]:
    return [float(sum(after[tail[:index]][token] for index, token in enumerate(tail))) for tail in tails]
