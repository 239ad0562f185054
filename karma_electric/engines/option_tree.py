"""Options as a tree of tokens: after which of them logits are needed, and what these say of each option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.sampling import log_softmax
from karma_electric.errors import InputError

TokenPath = tuple[int, ...]  # from the prompt on


class OptionTree:
    """The options' tokens behind what all of them and the bare prompt share.

    Where they are `held`, nothing else can be written, as under a grammar: after each path only the tokens that lead on
    to an option count, and their probabilities sum to 1. A token without an alternative then has probability 1. No
    option may then begin with another one.
    """

    def __init__(self, tails: Sequence[TokenPath], *, held: bool) -> None:
        self._tails = tails
        self._held = held
        self._next: dict[TokenPath, set[int]] = {}
        for tail in tails:
            for index, token in enumerate(tail):
                self._next.setdefault(tail[:index], set()).add(token)
        if held and any(tail in self._next for tail in tails):
            raise InputError("an option begins with another one; held to them, an answer would not know where to end")

    @property
    def read(self) -> set[TokenPath]:
        """The paths whose logits are needed, but for (), the prompt's."""
        return {path for path in self._next if path and self._counts(path)}

    @property
    def leaves(self) -> list[TokenPath]:
        """Of `read`, those that none of the others goes on from; sorted."""
        inner = {path[:length] for path in self.read for length in range(1, len(path))}
        return sorted(self.read - inner)

    def log_probabilities(self, logits: Mapping[TokenPath, NDArray[np.float32]]) -> list[float]:
        """Of each option, in nats, from the logits after () and after each path of `read`, (vocab_size,) each."""
        after = {path: self._weigh(path, logits[path]) for path in self._next if self._counts(path)}
        return [
            float(sum(after[tail[:index]][token] for index, token in enumerate(tail) if tail[:index] in after))
            for tail in self._tails
        ]

    def _counts(self, path: TokenPath) -> bool:
        return not self._held or len(self._next[path]) > 1

    def _weigh(self, path: TokenPath, logits: NDArray[np.float32]) -> Mapping[int, float] | NDArray[np.float64]:
        if not self._held:
            return log_softmax(logits)
        tokens = sorted(self._next[path])
        return dict(zip(tokens, log_softmax(logits[tokens]).tolist(), strict=True))
