"""The elementwise work of a Llama block and of its loss, forward and backward, as plain PyTorch.

On a CUDA device each function is compiled into one kernel or two, so that memory is read and written once; on a CPU
the same lines run on some rows at a time, which then stay in the cache. Arithmetic is in float32, results are in the
type of the input.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

_SLAB_ELEMENTS = 2**19  # 2 MB in float32
_SHARED_BY_ROWS = {"weight", "columns"}  # every other tensor has a row for each token


def fused(function: F) -> F:
    """`function`, compiled where its first argument is on a CUDA device, and run by slabs of rows on a CPU."""
    names = tuple(inspect.signature(function).parameters)
    compiled: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        first: Tensor = args[0]
        if first.is_cuda:
            if not compiled:
                compiled.append(torch.compile(function))
            return compiled[0](*args)
        rows = max(16, _SLAB_ELEMENTS * len(first) // max(1, first.numel()))
        if len(first) <= rows:
            return function(*args)
        by_row = [
            isinstance(arg, Tensor) and name not in _SHARED_BY_ROWS for name, arg in zip(names, args, strict=True)
        ]
        slabs = [
            function(*(arg[start : start + rows] if split else arg for arg, split in zip(args, by_row, strict=True)))
            for start in range(0, len(first), rows)
        ]
        if isinstance(slabs[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*slabs, strict=True))
        return torch.cat(slabs)

    return call  # type: ignore[return-value]


def _mixed(numbers: Tensor) -> Tensor:
    """The 32-bit finaliser "lowbias32" of Chris Wellons, on int32, whose products wrap around."""
    numbers = numbers ^ ((numbers >> 16) & 0xFFFF)  # a right shift of int32 keeps the sign; the mask makes it logical
    numbers = numbers * 0x7FEB352D
    numbers = numbers ^ ((numbers >> 15) & 0x1FFFF)
    numbers = numbers * -2073254261  # 0x846CA68B
    return numbers ^ ((numbers >> 16) & 0xFFFF)


def dropout_rows(keys: Tensor, n_places: int) -> Tensor:
    """(n_places, T) int32: for each place of use a number for each token, from the tokens' keys, (T,) int32."""
    places = torch.arange(1, n_places + 1, device=keys.device, dtype=torch.int32) * -1640531527  # 0x9E3779B9
    return _mixed(keys[None, :] ^ _mixed(places)[:, None])


def dropout_columns(n_columns: int, device: torch.device) -> Tensor:
    """(n_columns,) int32: a number for each column."""
    return _mixed(torch.arange(1, n_columns + 1, device=device, dtype=torch.int32))


def kept(rows: Tensor, columns: Tensor, share_dropped: float) -> Tensor:
    """(T, K) bool: what dropout keeps, as a function of a number for each row and one for each column.

    There is no generator whose state must be saved, and a token's mask is the same however its sequence is packed.
    """
    mixed = (rows[:, None] ^ columns[None, :]) * 0x7FEB352D
    mixed = (mixed ^ ((mixed >> 15) & 0x1FFFF)) * -2073254261
    return mixed >= int(share_dropped * 2**32) - 2**31


def _drop(x: Tensor, rows: Tensor, columns: Tensor, share: float) -> Tensor:
    return torch.where(kept(rows, columns, share), x * (1 / (1 - share)), 0.0)


@fused
def dropped(x: Tensor, rows: Tensor, columns: Tensor, share: float) -> Tensor:
    """(T, K) with dropout."""
    return _drop(x.float(), rows, columns, share).to(x.dtype)


@fused
def add_dropped(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, share: float) -> Tensor:
    """x plus y with dropout, each (T, K)."""
    return (x.float() + _drop(y.float(), rows, columns, share)).to(x.dtype)


def _normalised(h: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    return (h.float() * rstd) * weight.float()


@fused
def rms_norm(h: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(T, D) normalised, and 1 / root mean square, (T, 1) float32."""
    rstd = torch.rsqrt(h.float().square().mean(-1, keepdim=True) + epsilon)
    return _normalised(h, weight, rstd).to(h.dtype), rstd


@fused
def rms_norm_dropped(
    h: Tensor, weight: Tensor, epsilon: float, rows: Tensor, columns: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `rms_norm` gives, and between the two the first with dropout."""
    rstd = torch.rsqrt(h.float().square().mean(-1, keepdim=True) + epsilon)
    x = _normalised(h, weight, rstd)
    return x.to(h.dtype), _drop(x, rows, columns, share).to(h.dtype), rstd


@fused
def renormalise(h: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """The output of `rms_norm` once more, for the backward pass."""
    return _normalised(h, weight, rstd).to(h.dtype)


@fused
def renormalise_dropped(h: Tensor, weight: Tensor, rstd: Tensor, rows: Tensor, columns: Tensor, share: float) -> Tensor:
    """The second output of `rms_norm_dropped` once more."""
    return _drop(_normalised(h, weight, rstd), rows, columns, share).to(h.dtype)


def _norm_gradient(dx: Tensor, h: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    scaled = dx * weight.float()
    unit = h.float() * rstd
    return rstd * (scaled - unit * (scaled * unit).mean(-1, keepdim=True))


@fused
def rms_norm_backward(dx: Tensor, h: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """The gradient at h, (T, D), from that at the norm's output."""
    return _norm_gradient(dx.float(), h, weight, rstd).to(h.dtype)


@fused
def rms_norm_backward_dropped(
    dx: Tensor, dropped_dx: Tensor, h: Tensor, weight: Tensor, rstd: Tensor, rows: Tensor, columns: Tensor, share: float
) -> Tensor:
    """The same, where `dropped_dx` came through the output with dropout."""
    whole = dx.float() + _drop(dropped_dx.float(), rows, columns, share)
    return _norm_gradient(whole, h, weight, rstd).to(h.dtype)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


@fused
def swiglu(gate_up: Tensor) -> Tensor:
    """(T, 2 F), gates then ups, -> (T, F): silu(gate) x up."""
    return _swiglu(gate_up).to(gate_up.dtype)


@fused
def swiglu_dropped(gate_up: Tensor, rows: Tensor, columns: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The same, and the same with dropout."""
    product = _swiglu(gate_up)
    return product.to(gate_up.dtype), _drop(product, rows, columns, share).to(gate_up.dtype)


def _swiglu_gradients(d_product: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.float().chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    d_gate = d_product * up * sigmoid * (1 + gate * (1 - sigmoid))
    d_up = d_product * gate * sigmoid
    return d_gate.to(gate_up.dtype), d_up.to(gate_up.dtype)


@fused
def swiglu_backward(d_product: Tensor, gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients at gates and ups from that at the product, each (T, F)."""
    return _swiglu_gradients(d_product.float(), gate_up)


@fused
def swiglu_backward_dropped(
    d_product: Tensor, dropped_d: Tensor, gate_up: Tensor, rows: Tensor, columns: Tensor, share: float
) -> tuple[Tensor, Tensor]:
    """The same, where `dropped_d` came through the product with dropout."""
    return _swiglu_gradients(d_product.float() + _drop(dropped_d.float(), rows, columns, share), gate_up)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (T, heads, head_dim) with its halves exchanged and turned; a flip is an index, where cat would be a copy."""
    exchanged = torch.unflatten(x, -1, (2, -1)).flip(-2).flatten(-2)
    return (x.float() * cos[:, None] + exchanged.float() * sin[:, None]).to(x.dtype)


@fused
def rotate_heads(qkv: Tensor, cos: Tensor, sin: Tensor, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(T, (n_heads + 2 n_kv_heads) head_dim) -> queries and keys, rotated by their positions, and values.

    Each (T, heads, head_dim), in memory of its own. cos, sin: (T, head_dim) float32, sin negative in the first half.
    """
    heads = torch.unflatten(qkv, -1, (n_heads + 2 * n_kv_heads, -1))
    queries = _rotated(heads[:, :n_heads], cos, sin)
    keys = _rotated(heads[:, n_heads : n_heads + n_kv_heads], cos, sin)
    return queries, keys, heads[:, n_heads + n_kv_heads :].clone(memory_format=torch.contiguous_format)


@fused
def rotate_back(dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients at the inputs of `rotate_heads`, each (T, heads x head_dim), from those at queries and keys."""
    return _rotated(dq, cos, -sin).flatten(1), _rotated(dk, cos, -sin).flatten(1)


@fused
def cross_entropy_with_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(L, V) logits and (L,) targets -> (L,) losses in nats, float32, and the gradient of their sum, (L, V)."""
    log_probabilities = torch.log_softmax(logits.float(), -1)
    losses = -log_probabilities.gather(1, targets[:, None]).squeeze(1)
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = log_probabilities.exp() - (columns[None, :] == targets[:, None]).float()
    return losses, gradient.to(logits.dtype)
