"""Causal attention over sequences that lie end to end: exact borders, no mask, no padding."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]


def packed_attention(queries: Tensor, keys: Tensor, values: Tensor, borders: Tensor, lengths: Sequence[int]) -> Tensor:
    """(T, heads, head_dim) from queries of that shape, and keys and values of (T, kv heads, head_dim).

    borders: (sequences + 1,) int32, where each sequence begins and the last one ends; lengths: the same as numbers. On
    a CUDA device in 16 bits this is flash attention over all sequences at once; elsewhere, one sequence at a time.
    """
    if varlen_attn is not None and queries.is_cuda and queries.dtype in (torch.bfloat16, torch.float16):
        longest = max(lengths)
        out: Any = varlen_attn(
            queries,
            keys,
            values,
            borders,
            borders,
            longest,
            longest,
            **_causal_arguments(queries.shape[1] != keys.shape[1]),
        )
        attended: Tensor = out
        return attended
    group = queries.shape[1] // keys.shape[1]
    parts = zip(*(torch.split(part, list(lengths)) for part in (queries, keys, values)), strict=True)
    return torch.cat([_one_sequence(q, k, v, group) for q, k, v in parts])


def _one_sequence(queries: Tensor, keys: Tensor, values: Tensor, group: int) -> Tensor:
    """Attention within one sequence, heads last but one, as its inputs."""
    if group > 1:
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    out = scaled_dot_product_attention(
        queries.transpose(0, 1)[None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None], is_causal=True
    )
    return out[0].transpose(0, 1)


@functools.cache
def _causal_arguments(is_grouped: bool) -> dict[str, Any]:
    """How this version of torch is told: causal, and fewer heads of keys than of queries."""
    known = inspect.signature(varlen_attn).parameters
    arguments: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    return arguments | ({"enable_gqa": is_grouped} if "enable_gqa" in known else {})
