"""States in float32 from a model in bf16, on a CPU, in half the time of float32 products.

bf16 states are rounded after every block, and an axis is a small difference of large states. So the states are float32
and only factors are rounded to bf16, in which the weights are exact; products are added in float32. The states that
attention reads and writes are given as two bf16 numbers each, because their rounding moves the axis most.
A processor without bf16 products computes the same sums in float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from karma_electric.axis.model import LoadedModel, copy_of


@contextlib.contextmanager
def float32_states(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The model to measure states with: on a CPU a float32 copy of a bf16 model, elsewhere `loaded`."""
    if loaded.device.type != "cpu" or loaded.model.dtype != torch.bfloat16:
        yield loaded
        return
    precise = copy_of(loaded, loaded.device, torch.float32)
    with _Bf16Products(precise.blocks):
        yield precise


class _Bf16Products(TorchFunctionMode):
    """While it lasts, linear layers of float32 multiply in bf16 where the processor can, and add in float32."""

    def __init__(self, blocks: torch.nn.ModuleList) -> None:
        super().__init__()
        self._of_attention = {
            id(module.weight)
            for name, module in blocks.named_modules()
            if isinstance(module, torch.nn.Linear) and "attn" in name
        }

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is not linear or args[0].dtype != torch.float32:
            return function(*args, **(kwargs or {}))
        states, weight, *bias = args
        with _medium_precision():
            if id(weight) not in self._of_attention:
                return linear(*args)
            high = states.bfloat16().float()
            return linear(high, weight, *bias).add_(linear(states - high, weight))


@contextlib.contextmanager
def _medium_precision() -> Iterator[None]:
    """Only around one product: attention itself would become slower and less exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
