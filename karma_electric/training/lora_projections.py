"""Linear layers on one input, each with a LoRA on a frozen base, as one matrix product and its gradient.

The modules are peft's, the 4-bit weights bitsandbytes'; only the arithmetic is here. The gradient of a frozen weight is
not needed, so what is kept for the backward pass is the input of the LoRA and its r products a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

ADAPTER = "default"


class Projection:
    """A linear layer of `n_rows` outputs: a frozen base, and a LoRA (a: (r, K), b: (n_rows, r)) or none.

    Weights are looked up at each use: a wrapper that shards a model puts others in their place.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._base = getattr(module, "base_layer", module)
        if getattr(self._base, "bias", None) is not None:
            raise RuntimeError("a linear layer with a bias is not what a Llama block holds")
        self.has_lora = self._base is not module
        self.n_rows: int = self._base.out_features
        self.n_columns: int = self._base.in_features
        self.scale = float(module.scaling[ADAPTER]) if self.has_lora else 0.0
        dropout = module.lora_dropout[ADAPTER] if self.has_lora else None
        self.dropout = float(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0

    @property
    def a(self) -> Tensor:
        """(r, K)."""
        weight: Tensor = self._module.lora_A[ADAPTER].weight
        return weight

    @property
    def b(self) -> Tensor:
        """(n_rows, r)."""
        weight: Tensor = self._module.lora_B[ADAPTER].weight
        return weight

    @property
    def device(self) -> torch.device:
        """Where the base's weight is."""
        device: torch.device = self._base.weight.device
        return device

    def dense(self, out: Tensor) -> None:
        """Write the base's weight, (n_rows, n_columns), into `out`."""
        weight = self._base.weight
        state = getattr(weight, "quant_state", None) or getattr(self._base, "quant_state", None)
        if state is None:
            out.copy_(weight)
        elif weight.is_cuda and out.dtype == state.dtype:
            dequantize_4bit(weight.data, state, out=out)
        else:
            out.copy_(dequantize_4bit(weight.data, state))


class Projections:
    """Projections of one input, (T, K) -> (T, rows of all of them); dropout on that input is one for all."""

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype) -> None:
        self.parts = [Projection(module) for module in modules]
        self.n_rows = sum(part.n_rows for part in self.parts)
        self.n_columns = self.parts[0].n_columns
        self.dropout = max(part.dropout for part in self.parts)
        self.dtype = dtype

    def parameters(self) -> list[Tensor]:
        """Every LoRA's a and b, in the order in which `backward` returns gradients."""
        return [weight for part in self.parts if part.has_lora for weight in (part.a, part.b)]

    def dense(self) -> Tensor:
        """The frozen weights, (n_rows, K), in the type of the computation."""
        weight = torch.empty(
            self.n_rows,
            self.n_columns,
            dtype=self.dtype,
            device=self.parts[0].device,
        )
        start = 0
        for part in self.parts:
            part.dense(weight[start : start + part.n_rows])
            start += part.n_rows
        return weight

    def forward(self, x: Tensor, lora_x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The outputs, and the products a·x of every LoRA, each (T, r), which `backward` needs.

        `lora_x` is x with dropout, or x itself. The LoRA's part comes first and the base's is added to it, because a
        small number that is added to a large one of 16 bits is lost, again and again in the same way.
        """
        products = self.forward_products(lora_x)
        if not products:
            return x @ self.dense().T, products
        out = torch.empty(len(x), self.n_rows, dtype=self.dtype, device=x.device)
        waiting = iter(products)
        start = 0
        for part in self.parts:
            ours = out[:, start : start + part.n_rows]
            if part.has_lora:
                torch.mm(next(waiting) * part.scale, part.b.to(self.dtype).T, out=ours)
            else:
                ours.zero_()
            start += part.n_rows
        return out.addmm_(x, self.dense().T), products

    def forward_products(self, lora_x: Tensor) -> list[Tensor]:
        """The products alone."""
        return [lora_x @ part.a.to(self.dtype).T for part in self.parts if part.has_lora]

    def backward(
        self, d_outs: Sequence[Tensor], lora_x: Tensor, products: Sequence[Tensor], *, needs_dx: bool
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """Gradients at x, at lora_x (None where it is x: then both are in the first), and at the parameters.

        `d_outs`: the gradient at each projection's output, (T, its rows).
        """
        d_lora: Tensor | None = None
        gradients: list[Tensor] = []
        waiting = iter(products)
        for part, d_out in zip(self.parts, d_outs, strict=True):
            if not part.has_lora:
                continue
            d_product = (d_out @ part.b.to(self.dtype)).mul_(part.scale)  # (T, r)
            gradients.append((d_product.T @ lora_x).to(part.a.dtype))
            gradients.append((d_out.T @ next(waiting)).mul_(part.scale).to(part.b.dtype))
            if needs_dx:
                d_lora = _plus_product(d_lora, d_product, part.a.to(self.dtype))
        if not needs_dx:
            return None, None, gradients
        dx, d_lora = (None, d_lora) if self.dropout else (d_lora, None)
        for d_out, weight in zip(d_outs, torch.split(self.dense(), [part.n_rows for part in self.parts]), strict=True):
            dx = _plus_product(dx, d_out, weight)
        return dx, d_lora, gradients


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """a @ b, added to `total` in its place, if there is one."""
    return a @ b if total is None else total.addmm_(a, b)
