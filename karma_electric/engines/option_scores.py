"""Log-probabilities of several continuations of one prompt, with few decodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_context import LlamaCppContext, common_length
from karma_electric.errors import InputError

Tokens = tuple[int, ...]


def score_options(context: LlamaCppContext, bare: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[float]:
    """The sum of log-probabilities, in nats, of each sequence's tokens after what all of them and `bare` share.

    The sequences form a trie below the shared part. Its inner nodes are decoded, one batch for each branch, and the
    memory is cut back between branches.
    """
    shared = common_length([bare, *sequences])
    shared = min(shared, min(len(sequence) for sequence in sequences) - 1)  # at least one token is scored
    if shared < 1:
        raise InputError("an option shares no token with the prompt; expected a prompt before the options")
    tails = [tuple(sequence[shared:]) for sequence in sequences]
    after: dict[Tokens, NDArray[np.float64]] = {(): log_softmax(context.read(list(bare[:shared])))}
    for path in branches(tails):
        context.rewind(shared)
        for index, row in enumerate(context.extend(path)):
            after[path[: index + 1]] = log_softmax(row)
    return [float(sum(after[tail[:index]][token] for index, token in enumerate(tail))) for tail in tails]


def branches(tails: Sequence[Tokens]) -> list[Tokens]:
    """The paths to decode, sorted: each tail but its last token, less those that another one starts with."""
    paths = sorted({tail[:-1] for tail in tails} - {()})
    return [path for path, after in zip(paths, [*paths[1:], ()], strict=True) if after[: len(path)] != path]


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Natural logarithms of the probabilities, in float64: (vocab_size,) -> (vocab_size,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    log_probabilities: NDArray[np.float64] = wide - np.log(np.exp(wide).sum())
    return log_probabilities
