"""The elementwise work of a Llama block and of its loss, forward and backward, as plain PyTorch.

On a CUDA device each function is compiled into one kernel or two, so that memory is read and written once; on a CPU
the same lines run as they stand. Arithmetic is in float32, results in the type of the input.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def fused(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, compiled where its first argument is on a CUDA device."""
    compiled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not cast(Tensor, args[0]).is_cuda:
            return function(*args, **kwargs)
        if not compiled:
            compiled.append(torch.compile(function))
        return compiled[0](*args, **kwargs)

    return call


def kept(keys: Tensor, salt: Tensor, n_columns: int, share_dropped: float) -> Tensor:
    """(T, n_columns) bool: what dropout keeps, as a function of a key for each row and a salt for each place of use.

    The hash is the 32-bit finaliser "lowbias32" of Chris Wellons. There is no generator whose state must be saved, and
    a token's mask is the same however its sequence is packed. keys: (T,) int32; salt: () int32.
    """
    columns = torch.arange(n_columns, device=keys.device, dtype=torch.int32) * -1640531535  # 0x9E3779B1
    mixed = (keys ^ salt)[:, None] + columns[None, :]
    mixed = mixed ^ ((mixed >> 16) & 0xFFFF)  # a right shift of int32 keeps the sign; the mask makes it logical
    mixed = mixed * 0x7FEB352D
    mixed = mixed ^ ((mixed >> 15) & 0x1FFFF)
    mixed = mixed * -2073254261  # 0x846CA68B
    mixed = mixed ^ ((mixed >> 16) & 0xFFFF)
    return (mixed & 0xFFFFFF) >= int(share_dropped * 0x1000000)


def _drop(x: Tensor, keys: Tensor, salt: Tensor, share: float) -> Tensor:
    return torch.where(kept(keys, salt, x.shape[1], share), x * (1 / (1 - share)), 0.0)


@fused
def dropped(x: Tensor, keys: Tensor, salt: Tensor, share: float) -> Tensor:
    """(T, K) with dropout."""
    return _drop(x.float(), keys, salt, share).to(x.dtype)


@fused
def add_dropped(x: Tensor, y: Tensor, keys: Tensor, salt: Tensor, share: float) -> Tensor:
    """x plus y with dropout, each (T, K)."""
    return (x.float() + _drop(y.float(), keys, salt, share)).to(x.dtype)


def _normalised(h: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    return (h.float() * rstd) * weight.float()


@fused
def rms_norm(h: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """(T, D) normalised, and 1 / root mean square, (T, 1) float32."""
    rstd = torch.rsqrt(h.float().square().mean(-1, keepdim=True) + epsilon)
    return _normalised(h, weight, rstd).to(h.dtype), rstd


@fused
def rms_norm_dropped(
    h: Tensor, weight: Tensor, epsilon: float, keys: Tensor, salt: Tensor, share: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `rms_norm` gives, and between the two the first with dropout."""
    rstd = torch.rsqrt(h.float().square().mean(-1, keepdim=True) + epsilon)
    x = _normalised(h, weight, rstd)
    return x.to(h.dtype), _drop(x, keys, salt, share).to(h.dtype), rstd


@fused
def renormalise(h: Tensor, weight: Tensor, rstd: Tensor) -> Tensor:
    """The output of `rms_norm` once more, for the backward pass."""
    return _normalised(h, weight, rstd).to(h.dtype)


@fused
def renormalise_dropped(h: Tensor, weight: Tensor, rstd: Tensor, keys: Tensor, salt: Tensor, share: float) -> Tensor:
    """The second output of `rms_norm_dropped` once more."""
    return _drop(_normalised(h, weight, rstd), keys, salt, share).to(h.dtype)


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
    dx: Tensor, dropped_dx: Tensor, h: Tensor, weight: Tensor, rstd: Tensor, keys: Tensor, salt: Tensor, share: float
) -> Tensor:
    """The same, where `dropped_dx` came through the output with dropout."""
    whole = dx.float() + _drop(dropped_dx.float(), keys, salt, share)
    return _norm_gradient(whole, h, weight, rstd).to(h.dtype)


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    return gate * torch.sigmoid(gate) * up


@fused
def swiglu(gate_up: Tensor) -> Tensor:
    """(T, 2 F), gates then ups, -> (T, F): silu(gate) x up."""
    return _swiglu(gate_up).to(gate_up.dtype)


@fused
def swiglu_dropped(gate_up: Tensor, keys: Tensor, salt: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The same, and the same with dropout."""
    product = _swiglu(gate_up)
    return product.to(gate_up.dtype), _drop(product, keys, salt, share).to(gate_up.dtype)


def _swiglu_gradient(d_product: Tensor, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.float().chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    d_gate = d_product * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([d_gate, d_product * gate * sigmoid], -1)


@fused
def swiglu_backward(d_product: Tensor, gate_up: Tensor) -> Tensor:
    """The gradient at gate_up, (T, 2 F), from that at the product, (T, F)."""
    return _swiglu_gradient(d_product.float(), gate_up).to(gate_up.dtype)


@fused
def swiglu_backward_dropped(
    d_product: Tensor, dropped_d: Tensor, gate_up: Tensor, keys: Tensor, salt: Tensor, share: float
) -> Tensor:
    """The same, where `dropped_d` came through the product with dropout."""
    whole = d_product.float() + _drop(dropped_d.float(), keys, salt, share)
    return _swiglu_gradient(whole, gate_up).to(gate_up.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: (T, heads, head_dim) float32; cos, sin: (T, head_dim / 2)."""
    first, second = x.chunk(2, -1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


@fused
def rotate_heads(qkv: Tensor, cos: Tensor, sin: Tensor, n_heads: int, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(T, (n_heads + 2 n_kv_heads) head_dim) -> queries and keys, rotated by their positions, and values.

    Each (T, heads, head_dim), in memory of its own. cos, sin: (T, head_dim / 2) float32.
    """
    heads = qkv.unflatten(-1, (n_heads + 2 * n_kv_heads, -1))
    queries = _rotated(heads[:, :n_heads].float(), cos, sin).to(qkv.dtype)
    keys = _rotated(heads[:, n_heads : n_heads + n_kv_heads].float(), cos, sin).to(qkv.dtype)
    return queries, keys, heads[:, n_heads + n_kv_heads :].clone(memory_format=torch.contiguous_format)


@fused
def rotate_heads_backward(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The gradient at the input of `rotate_heads`, (T, (n_heads + 2 n_kv_heads) head_dim)."""
    parts = [_rotated(dq.float(), cos, -sin), _rotated(dk.float(), cos, -sin), dv.float()]
    return torch.cat(parts, 1).to(dq.dtype).flatten(1)


@fused
def cross_entropy_with_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(L, V) logits and (L,) targets -> (L,) losses in nats, float32, and the gradient of their sum, (L, V)."""
    log_probabilities = torch.log_softmax(logits.float(), -1)
    losses = -log_probabilities.gather(1, targets[:, None]).squeeze(1)
    columns = torch.arange(logits.shape[1], device=logits.device)
    gradient = log_probabilities.exp() - (columns[None, :] == targets[:, None]).float()
    return losses, gradient.to(logits.dtype)
