"""FSDP: every process keeps a share of each block's weights, and has a block whole only while it computes it.

A configuration of accelerate with `distributed_type: FSDP` asks for it (launch.py). torch's `fully_shard` (FSDP2) does
it here instead of accelerate, which rounds the loss to bf16, gives the 8-bit optimizer tensors that bitsandbytes cannot
read, and has no FSDP without a GPU. NF4 weights are sharded as the bytes that they are, in the clothes of `STORAGE`:
torch moves them and never computes with them. Their scales, an eighth of a bit and less a weight, are whole everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

# fully_shard takes floating types alone, and gathers with torch._foreach_copy_, which on a GPU copies bf16 through
# float32: what reads as a NaN comes out as another one (253 of all 65,536 bit patterns). float32 keeps every bit.
STORAGE: Final = torch.float32


def shard(model: nn.Module, blocks: Iterable[nn.Module]) -> None:
    """Leave this process its share of `model`, whose `blocks` are gathered one at a time; a collective call.

    What is trained begins with the first process's values.
    """
    for value in model.parameters():
        if value.requires_grad:
            torch.distributed.broadcast(value.data, src=0)
    for block in blocks:
        fully_shard(block)
    fully_shard(model)


def local_part(value: Tensor) -> Tensor:
    """What of `value` is in this process, without its history; writing to it writes to `value`."""
    found = value.detach()
    return found.to_local() if isinstance(found, DTensor) else found


@torch.no_grad()
def whole(value: Tensor) -> Tensor:
    """All of `value`, in every process; a collective call where it is sharded."""
    return value.full_tensor() if isinstance(value, DTensor) else value


@torch.no_grad()
def set_values(parameter: Tensor, values: Tensor) -> None:
    """Copy `values`, of the whole parameter, into what of it is in this process."""
    if isinstance(parameter, DTensor):
        spread = distribute_tensor(
            values.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
        values = spread.to_local()
    local_part(parameter).copy_(values)


def gathered(value: object, *, is_first: bool, processes: int) -> Sequence[object]:
    """In the first process `value` of every one, in their order; elsewhere nothing. A collective call."""
    found: list[object] | None = [None] * processes if is_first else None
    torch.distributed.gather_object(value, found)
    return found or ()
