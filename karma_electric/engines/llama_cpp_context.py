"""A llama.cpp context of one sequence, which can be continued in several ways at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.engines.llama_cpp_decoder import BATCH_TOKENS, MAX_BRANCHES, CacheType, LlamaCppDecoder, Row
from karma_electric.engines.llama_cpp_model import LlamaCppModel
from karma_electric.engines.llama_cpp_sequence import TokenSequence
from karma_electric.engines.option_tree import TokenPath


class LlamaCppContext(TokenSequence):
    """A context of `model`, capped by `cap` when one is given. Not for two threads at once."""

    def __init__(
        self, model: LlamaCppModel, *, context_tokens: int, threads: int, cache_type: CacheType, cap: CapCallback | None
    ) -> None:
        super().__init__(
            LlamaCppDecoder(model, context_tokens=context_tokens, threads=threads, cache_type=cache_type, cap=cap)
        )

    @property
    def callback(self) -> CapCallback | None:
        """What caps it."""
        return self._decoder.callback

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
                Row(
                    token=node[-1],
                    position=self.length + len(node) - 1,
                    sequences=tuple(number for number, path in enumerate(group, 1) if path[: len(node)] == node),
                    wanted=True,
                )
                for node in nodes
            ]
            for number in range(1, len(group) + 1):
                self._decoder.copy(0, number)
            logits, _ = self._decoder.decode(rows)
            found |= dict(zip(nodes, logits, strict=True))
            for number in range(1, len(group) + 1):
                self._decoder.remove(number, 0)
        return found

    def free(self) -> None:
        """Give the memory back."""
        self._decoder.free()


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
