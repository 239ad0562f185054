"""All trained parameters in one buffer, so that an optimizer's step is one launch instead of one for each tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

BLOCK = 256  # values that an 8-bit optimizer scales together; no block holds two parameters' values


class FlatParameters:
    """The parameters as views into `flat`, which the optimizer gets in their place.

    All must be of one type and on one device. Between two parameters may lie a few zeros, whose gradient is zero.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        sizes = [-(-parameter.numel() // BLOCK) * BLOCK for parameter in self.parameters]
        first = self.parameters[0]
        self.flat = nn.Parameter(torch.zeros(sum(sizes), dtype=first.dtype, device=first.device))
        self._gradient = torch.zeros_like(self.flat.data)
        self._gradients = self._views(self._gradient, sizes)
        self._values = self._views(self.flat.data, sizes)
        self._attach()

    def _attach(self) -> None:
        """Make every parameter a view, also one that a wrapper around the model has given memory of its own."""
        for parameter, view in zip(self.parameters, self._values, strict=True):
            if parameter.data_ptr() != view.data_ptr():
                view.copy_(parameter.data)
                parameter.data = view

    def _views(self, flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        parts = torch.split(flat, list(sizes))
        return [
            part[: parameter.numel()].view(parameter.shape)
            for part, parameter in zip(parts, self.parameters, strict=True)
        ]

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


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        raise RuntimeError("a parameter without a gradient")
    return parameter.grad
