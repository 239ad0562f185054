"""How the sequences of a step become packed rows: no padding, and no row above a budget of tokens.

A step is a fixed number of sequences, whatever the budget and however many processes share it: packing changes what is
in memory at once, not what is learned. The order of the sequences follows from the seed and the epoch alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from karma_electric.training.rendering import IGNORED_LABEL, RenderedExample


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Sequences end to end, T tokens together: one forward and backward pass.

    input_ids, position_ids: (T,) int64; positions start at 0 in every sequence. borders: (sequences + 1,) int32, where
    each begins and the last one ends. lengths: the same as Python numbers. learned: (L,) int64, the positions whose
    next token is learned; targets: (L,) int64, those tokens. dropout_keys: (T,) int32, one number for each token,
    the same wherever the token is packed.
    """

    input_ids: Tensor
    position_ids: Tensor
    borders: Tensor
    lengths: tuple[int, ...]
    learned: Tensor
    targets: Tensor
    dropout_keys: Tensor

    def to(self, device: torch.device) -> PackedRow:
        """The same row on `device`."""
        moved = {
            name: getattr(self, name).to(device)
            for name in ("input_ids", "position_ids", "borders", "learned", "targets", "dropout_keys")
        }
        return PackedRow(lengths=self.lengths, **moved)


@dataclass(frozen=True, slots=True)
class PackedStep:
    """The rows of one step that one process computes; the counts are of the whole step, over all processes."""

    rows: tuple[PackedRow, ...]
    learned_tokens: int
    tokens: int
    sequences: int


def pack(lengths: Sequence[int], tokens_per_row: int, *, processes: int = 1) -> list[list[list[int]]]:
    """Positions in `lengths`, in rows of at most `tokens_per_row` tokens, for each process.

    Longest first, each sequence goes to the row with the fewest tokens among as few rows as will hold them; a sequence
    longer than the budget has a row of its own. Every process gets the same number of rows, as collective operations
    need; a row can be empty where there are fewer sequences than rows.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    n_rows = max(1, -(-sum(lengths) // tokens_per_row))
    n_rows += -n_rows % processes
    while True:
        rows: list[list[int]] = [[] for _ in range(n_rows)]
        totals = [0] * n_rows
        for place in order:
            row = min(range(n_rows), key=lambda number: (totals[number], number))
            rows[row].append(place)
            totals[row] += lengths[place]
        if all(total <= tokens_per_row or len(row) == 1 for row, total in zip(rows, totals, strict=True)):
            return [[sorted(row) for row in rows[rank::processes]] for rank in range(processes)]
        n_rows += processes


def packed_row(examples: Sequence[RenderedExample], keys: Sequence[int], *, learn: bool = True) -> PackedRow:
    """The examples end to end. `keys`: a 32-bit number for each, from which its tokens' dropout follows.

    A token is never the target of another sequence's last token. With `learn` false nothing is learned.
    """
    lengths = tuple(len(example.input_ids) for example in examples)
    borders = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([np.asarray(example.input_ids, dtype=np.int64) for example in examples])
    positions = np.concatenate([np.arange(length) for length in lengths])
    labels = np.concatenate([np.asarray(example.labels, dtype=np.int64) for example in examples])
    following = np.append(labels[1:], IGNORED_LABEL)
    following[borders[1:] - 1] = IGNORED_LABEL
    learned = np.flatnonzero(following != IGNORED_LABEL) if learn else np.zeros(0, dtype=np.int64)
    # An odd multiplier runs through all 32-bit numbers, so no two tokens of a sequence share a key.
    token_keys = np.repeat(np.asarray(keys, dtype=np.uint32), lengths) + positions.astype(np.uint32) * np.uint32(
        0x9E3779B1
    )
    return PackedRow(
        input_ids=torch.from_numpy(ids),
        position_ids=torch.from_numpy(positions),
        borders=torch.from_numpy(borders.astype(np.int32)),
        lengths=lengths,
        learned=torch.from_numpy(learned),
        targets=torch.from_numpy(following[learned]),
        dropout_keys=torch.from_numpy(token_keys.view(np.int32)),
    )


@dataclass
class StepOrder(Sampler[list[int]]):
    """Which sequences each step of an epoch holds: a permutation that follows from seed and epoch.

    Gives n_sequences x epoch + number. `steps_done`, which the trainer sets, says how many steps of the run were made,
    from which the epoch follows.
    """

    n_sequences: int
    sequences_per_step: int
    seed: int
    steps_done: Callable[[], int] = lambda: 0

    def __len__(self) -> int:
        return -(-self.n_sequences // self.sequences_per_step)

    def __iter__(self) -> Iterator[list[int]]:
        epoch = self.steps_done() // len(self)
        digest = hashlib.sha256(f"order\n{self.seed}\n{epoch}".encode()).digest()
        order = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32)).permutation(self.n_sequences).tolist()
        for start in range(0, self.n_sequences, self.sequences_per_step):
            yield [epoch * self.n_sequences + number for number in order[start : start + self.sequences_per_step]]


@dataclass
class StepCollator:
    """Packs the sequences of a step, {"step": PackedStep}, with the rows of process `rank` of `processes`."""

    examples: Sequence[RenderedExample]
    tokens_per_row: int
    seed: int
    rank: int = 0
    processes: int = 1

    def __call__(self, numbers: Sequence[int]) -> dict[str, PackedStep]:
        chosen = [divmod(number, len(self.examples)) for number in numbers]
        sequences = [self.examples[number] for _, number in chosen]
        rows = pack([len(sequence.input_ids) for sequence in sequences], self.tokens_per_row, processes=self.processes)
        keys = [self._key(epoch, number) for epoch, number in chosen]
        step = PackedStep(
            rows=tuple(self._row(sequences, keys, places) for places in rows[self.rank]),
            learned_tokens=sum(sum(sequence.assistant_mask[1:]) for sequence in sequences),
            tokens=sum(len(sequence.input_ids) for sequence in sequences),
            sequences=len(sequences),
        )
        return {"step": step}

    def _row(self, sequences: Sequence[RenderedExample], keys: Sequence[int], places: Sequence[int]) -> PackedRow:
        if places:
            return packed_row([sequences[place] for place in places], [keys[place] for place in places])
        # Nothing is left for this row, and every process must take part: a pass that learns nothing.
        return packed_row([min(sequences, key=lambda sequence: len(sequence.input_ids))], [0], learn=False)

    def _key(self, epoch: int, number: int) -> int:
        digest = hashlib.sha256(f"dropout\n{self.seed}\n{epoch}\n{number}".encode()).digest()
        return int.from_bytes(digest[:4], "little")


def step_loader(collator: StepCollator, sequences_per_step: int) -> tuple[DataLoader[Any], StepOrder]:
    """A loader of one PackedStep an item, and the order that it follows."""
    order = StepOrder(len(collator.examples), sequences_per_step, collator.seed)
    return DataLoader(_Numbers(order), batch_sampler=order, collate_fn=collator, num_workers=0), order


@dataclass(frozen=True)
class _Numbers(Dataset[int]):
    """What a StepOrder gives, as it is: the collator looks the sequences up."""

    order: StepOrder

    def __getitem__(self, number: int) -> int:
        return number

    def __len__(self) -> int:
        return self.order.n_sequences
