"""Log-probabilities of several continuations of one prompt, with few decodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_context import LlamaCppContext, TokenPath
from karma_electric.engines.llama_cpp_sequence import common_length
from karma_electric.engines.sampling import log_softmax
from karma_electric.errors import InputError


def score_options(context: LlamaCppContext, bare: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[float]:
    """The sum of log-probabilities, in nats, of each sequence's tokens after what all of them and `bare` share.

    The sequences form a trie below the shared part; its inner nodes are decoded together.
    """
    shared = common_length([bare, *sequences])
    if not 0 < shared < min(len(sequence) for sequence in sequences):
        raise InputError("an option shares no token with the prompt, or adds none; expected a prompt, then the option")
    tails = [tuple(sequence[shared:]) for sequence in sequences]
    after: dict[TokenPath, NDArray[np.float64]] = {(): log_softmax(context.read(list(bare[:shared])))}
    after |= {path: log_softmax(row) for path, row in context.branch(branches(tails)).items()}
    return [float(sum(after[tail[:index]][token] for index, token in enumerate(tail))) for tail in tails]


def branches(tails: Sequence[TokenPath]) -> list[TokenPath]:
    """The paths to decode, sorted: each tail but its last token, less those that another one starts with."""
    paths = {tail[:-1] for tail in tails} - {()}
    inner = {path[:length] for path in paths for length in range(1, len(path))}
    return sorted(paths - inner)
