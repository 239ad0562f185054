"""All trained parameters in one buffer, so that an optimizer's step is one launch instead of one for each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from karma_electric.training.sharding import local_part

BLOCK = 256  # values that an 8-bit optimizer scales together; no block holds two parameters' values


class FlatParameters:
    """The parameters as views into `flat`, which the optimizer gets in their place.

    All must be of one type and on one device. Between two parameters may lie a few zeros, whose gradient is zero. Of a
    sharded parameter `flat` holds this process's part, as a copy: the memory is FSDP's.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        parts = [local_part(parameter) for parameter in self.parameters]
        sizes = [-(-part.numel() // BLOCK) * BLOCK for part in parts]
        self.flat = nn.Parameter(torch.zeros(sum(sizes), dtype=parts[0].dtype, device=parts[0].device))
        self._gradient = torch.zeros_like(self.flat.data)
        self._gradients = _views(self._gradient, sizes, parts)
        self._values = _views(self.flat.data, sizes, parts)
        self._attach()

    def _attach(self) -> None:
        """Make every parameter a view, also one that a wrapper around the model has given memory of its own."""
        for parameter, view in zip(self.parameters, self._values, strict=True):
            if isinstance(parameter, DTensor):
                view.copy_(local_part(parameter))
            elif parameter.data_ptr() != view.data_ptr():
                view.copy_(parameter.data)
                parameter.data = view

    def gather_gradients(self) -> None:
        """Make the parameters' gradients the gradient of `flat`; one that has none counts as zero."""
        self._attach()
        present = [number for number, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if len(present) < len(self.parameters):
            self._gradient.zero_()
        torch._foreach_copy_(
            [self._gradients[number] for number in present], [_gradient(self.parameters[number]) for number in present]
        )
        self.flat.grad = self._gradient

    def spread_values(self) -> None:
        """Give sharded parameters what the optimizer made of `flat`; the others are views of it."""
        for parameter, view in zip(self.parameters, self._values, strict=True):
            if isinstance(parameter, DTensor):
                local_part(parameter).copy_(view)


def _views(flat: Tensor, sizes: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, list(sizes))
    return [part[: other.numel()].view(other.shape) for part, other in zip(parts, like, strict=True)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter without a gradient")
    return local_part(parameter.grad)
