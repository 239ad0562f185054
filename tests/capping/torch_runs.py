"""Runs of a model in PyTorch, plain, and with the formula applied by numpy: what the hooks are compared with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from karma_electric.capping.formula import Cap, cap_hidden_states
from karma_electric.capping.pytorch import decoder_blocks

LAYERS = (1, 2)
END = 2  # also the padding
PROMPT = torch.tensor([[1, 300, 17, 42, 99, 260, 31, 7]])
SECOND = torch.tensor([[1, 88, 310, 12]])


def load(folder: Path, dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@contextlib.contextmanager
def seen(model: Any, see: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Plain hooks of the test's own, on every block in order."""
    handles = [
        block.register_forward_hook(lambda _m, _i, output, layer=layer: see(layer, output))
        for layer, block in enumerate(decoder_blocks(model).blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs_of(model: Any, **inputs: Any) -> list[Tensor]:
    """The outputs of every block."""
    outputs: list[Tensor] = []
    with seen(model, lambda _layer, hidden: outputs.append(hidden.detach().clone())), torch.no_grad():
        model(**inputs)
    return outputs


def logits_of(model: Any, **inputs: Any) -> NDArray[Any]:
    with torch.no_grad():
        logits: NDArray[Any] = model(**inputs).logits.double().numpy()
    return logits


def reference_logits(model: Any, cap: Cap, token_ids: Tensor) -> NDArray[Any]:
    """Logits with the formula applied by numpy."""

    def lower(layer: int, hidden: Tensor) -> Tensor | None:
        if layer not in cap.taus:
            return None
        lowered = cap_hidden_states(hidden.numpy(), cap.directions[layer], tau=cap.taus[layer], alpha=cap.alpha)
        return torch.from_numpy(lowered).to(hidden.dtype)

    with seen(model, lower):
        return logits_of(model, input_ids=token_ids)


def largest(difference: NDArray[Any]) -> float:
    return float(np.abs(difference).max())


def padded(*rows: Tensor) -> dict[str, Tensor]:
    width = max(row.shape[1] for row in rows)
    short = [width - row.shape[1] for row in rows]
    ids = [torch.nn.functional.pad(row, (n, 0), value=END) for row, n in zip(rows, short, strict=True)]
    mask = [torch.nn.functional.pad(torch.ones_like(row), (n, 0)) for row, n in zip(rows, short, strict=True)]
    joined = torch.cat(mask)
    return {
        "input_ids": torch.cat(ids),
        "attention_mask": joined,
        "position_ids": (joined.cumsum(1) - 1).clamp(min=0),
    }


def stepwise(model: Any, token_ids: Tensor, first: int) -> NDArray[Any]:
    """Logits of a cached run: `first` tokens at once, then one by one."""
    cache = transformers.DynamicCache(config=model.config)
    parts = [token_ids[:, :first], *torch.unbind(token_ids[:, first:, None], dim=1)]
    return np.concatenate(
        [logits_of(model, input_ids=part, past_key_values=cache, use_cache=True) for part in parts], 1
    )
