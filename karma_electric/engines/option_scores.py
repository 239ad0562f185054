"""Log-probabilities of several continuations of one prompt, with few decodes.

The continuations form a tree below what all of them and the bare prompt share (option_tree.py). A context decodes all
of its nodes together; a sequence among others goes from node to node.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_context import LlamaCppContext, leading_parts
from karma_electric.engines.llama_cpp_sequence import TokenSequence, common_length
from karma_electric.engines.option_tree import OptionTree, TokenPath
from karma_electric.errors import InputError


def score_options(
    context: LlamaCppContext, bare: Sequence[int], sequences: Sequence[Sequence[int]], *, held: bool = False
) -> list[float]:
    """The sum of log-probabilities, in nats, of each sequence's tokens after what all of them and `bare` share."""
    shared, tree = _tree(bare, sequences, held=held)
    logits: dict[TokenPath, NDArray[np.float32]] = {(): context.read(list(bare[:shared]))}
    return tree.log_probabilities(logits | context.branch(tree.leaves))


def scores_by_steps(
    sequence: TokenSequence, bare: Sequence[int], sequences: Sequence[Sequence[int]], *, held: bool = False
) -> Generator[int, NDArray[np.float32], list[float]]:
    """As `score_options`, but yields the tokens to decode behind `sequence`, and is sent the logits after each."""
    shared, tree = _tree(bare, sequences, held=held)
    logits: dict[TokenPath, NDArray[np.float32]] = {(): sequence.read(list(bare[:shared]))}
    for path in sorted(leading_parts(tree.leaves)):  # sorted, each node comes right after its parent's others
        sequence.rewind(shared + len(path) - 1)
        logits[path] = yield path[-1]
    return tree.log_probabilities(logits)


def _tree(bare: Sequence[int], sequences: Sequence[Sequence[int]], *, held: bool) -> tuple[int, OptionTree]:
    """How many tokens all sequences and `bare` share, and the tree of what comes after them."""
    shared = common_length([bare, *sequences])
    if not 0 < shared < min(len(sequence) for sequence in sequences):
        raise InputError("an option shares no token with the prompt, or adds none; expected a prompt, then the option")
    return shared, OptionTree([tuple(sequence[shared:]) for sequence in sequences], held=held)
