"""Linear layers on one input, each with a LoRA on a frozen base, as one matrix product and its gradient.

The modules are peft's, the 4-bit weights bitsandbytes'; only the arithmetic is here. The gradient of a frozen weight is
not needed, so what is kept for the backward pass is the input of the LoRA and its r products a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from torch import Tensor, nn

ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Projection:
    """A linear layer of `n_rows` outputs: a frozen base, and a LoRA (a: (r, K), b: (n_rows, r)) or none."""

    base: nn.Module
    n_rows: int
    n_columns: int
    a: nn.Parameter | None
    b: nn.Parameter | None
    scale: float
    dropout: float

    @classmethod
    def of(cls, module: Any) -> Projection:
        """The projection that `module` is: peft's LoRA layer, or a linear layer without one."""
        base = getattr(module, "base_layer", module)
        if getattr(base, "bias", None) is not None:
            raise RuntimeError("a linear layer with a bias is not what a Llama block holds")
        if base is module:
            return cls(base, base.out_features, base.in_features, None, None, 0.0, 0.0)
        dropout = module.lora_dropout[ADAPTER]
        return cls(
            base,
            base.out_features,
            base.in_features,
            module.lora_A[ADAPTER].weight,
            module.lora_B[ADAPTER].weight,
            float(module.scaling[ADAPTER]),
            float(dropout.p) if isinstance(dropout, nn.Dropout) else 0.0,
        )

    def dense(self, out: Tensor) -> None:
        """Write the base's weight, (n_rows, n_columns), into `out`."""
        weight: Any = self.base.weight
        state = getattr(weight, "quant_state", None)
        if state is None:
            out.copy_(weight)
        elif weight.is_cuda and out.dtype == state.dtype:
            dequantize_4bit(weight.data, state, out=out)
        else:
            out.copy_(dequantize_4bit(weight.data, state))


class Projections:
    """Projections of one input, (T, K) -> (T, rows of all of them); dropout on that input is one for all.

    With `keep_dense` the dequantised weights stay in memory: the numbers are the same.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype, *, keep_dense: bool) -> None:
        self.parts = [Projection.of(module) for module in modules]
        self.n_rows = sum(part.n_rows for part in self.parts)
        self.n_columns = self.parts[0].n_columns
        self.dropout = max(part.dropout for part in self.parts)
        self.dtype = dtype
        self._keep_dense = keep_dense
        self._dense: Tensor | None = None

    def parameters(self) -> list[Tensor]:
        """Every LoRA's a and b, in the order in which `backward` returns gradients."""
        return [weight for part in self.parts if part.a is not None and part.b is not None for weight in (part.a, part.b)]

    def dense(self) -> Tensor:
        """The frozen weights, (n_rows, K), in the type of the computation."""
        if self._dense is not None:
            return self._dense
        weight = torch.empty(
            self.n_rows, self.n_columns, dtype=self.dtype, device=self.parts[0].base.weight.device  # type: ignore[arg-type]
        )
        start = 0
        for part in self.parts:
            part.dense(weight[start : start + part.n_rows])
            start += part.n_rows
        if self._keep_dense:
            self._dense = weight
        return weight

    def forward(self, x: Tensor, lora_x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """The outputs, and the products a·x of every LoRA, each (T, r), which `backward` needs.

        `lora_x` is x with dropout, or x itself; `residual`, if any, is added.
        """
        out = x @ self.dense().T if residual is None else torch.addmm(residual, x, self.dense().T)
        products: list[Tensor] = []
        start = 0
        for part in self.parts:
            if part.a is not None and part.b is not None:
                product = lora_x @ part.a.to(self.dtype).T
                out[:, start : start + part.n_rows].addmm_(product, part.b.to(self.dtype).T, alpha=part.scale)
                products.append(product)
            start += part.n_rows
        return out, products

    def forward_products(self, lora_x: Tensor) -> list[Tensor]:
        """The products alone."""
        return [lora_x @ part.a.to(self.dtype).T for part in self.parts if part.a is not None]

    def backward(
        self, d_out: Tensor, lora_x: Tensor, products: Sequence[Tensor], *, needs_dx: bool
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """Gradients at x, at lora_x (None where it is x: then both are in the first), and at the parameters."""
        dx = d_out @ self.dense() if needs_dx else None
        d_lora: Tensor | None = None
        gradients: list[Tensor] = []
        waiting = iter(products)
        start = 0
        for part in self.parts:
            rows = slice(start, start + part.n_rows)
            start += part.n_rows
            if part.a is None or part.b is None:
                continue
            d_product = (d_out[:, rows] @ part.b.to(self.dtype)).mul_(part.scale)  # (T, r)
            gradients.append((d_product.T @ lora_x).to(part.a.dtype))
            gradients.append((d_out[:, rows].T @ next(waiting)).mul_(part.scale).to(part.b.dtype))
            if dx is None:
                continue
            if not self.dropout:
                dx.addmm_(d_product, part.a.to(self.dtype))
            elif d_lora is None:
                d_lora = d_product @ part.a.to(self.dtype)
            else:
                d_lora.addmm_(d_product, part.a.to(self.dtype))
        return dx, d_lora, gradients
