"""A Llama with LoRA that trains on packed rows: transformers' modules, with a forward and backward pass of their own.

What a block keeps for its backward pass is its input, its queries, keys, values and attention output, the hidden state
between its halves, and gates and ups; norms, products and dropout masks are computed again. The same lines run on a CPU
and on a CUDA device.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from karma_electric.errors import InputError
from karma_electric.training import elementwise
from karma_electric.training.lora_projections import Projections
from karma_electric.training.packed_attention import packed_attention
from karma_electric.training.packing import PackedRow

DROPOUT_PLACES = 4  # in a block: in front of qkv, output, gate and up, down

# Positions whose logits are in memory at once. A CPU's allocator gives larger blocks back each time.
HEAD_ROWS = {"cpu": 256, "cuda": 2048}


@dataclass(slots=True)
class _Pass:
    """What all blocks share in one pass over a row.

    cos, sin: (T, head_dim) float32. dropout_rows: (places, T) int32; dropout_columns: (K,) int32 by K.
    """

    row: PackedRow
    cos: Tensor
    sin: Tensor
    dropout_rows: Tensor
    dropout_columns: Mapping[int, Tensor]
    recomputing: bool = field(default=False)  # then a block's output is not needed, only what it keeps

    @contextlib.contextmanager
    def recomputation(self) -> Iterator[None]:
        self.recomputing = True
        try:
            yield
        finally:
            self.recomputing = False


class _AttentionInput(Function):
    """Hidden states (T, D) -> norm -> rotated queries and keys, and values, each (T, heads, head_dim)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, block: _Block, shared: _Pass, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, lora_x, rstd = block.norm(block.attention_norm, h, block.qkv, shared, 0)
        qkv, products = block.qkv.forward(x, lora_x)
        ctx.block, ctx.shared = block, shared
        ctx.save_for_backward(h, rstd, *products)
        return elementwise.rotate_heads(qkv, shared.cos, shared.sin, block.n_heads, block.n_kv_heads)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
        block, shared = ctx.block, ctx.shared
        h, rstd, *products = ctx.saved_tensors
        dq, dk = elementwise.rotate_back(dq, dk, shared.cos, shared.sin)
        lora_x = block.renorm(block.attention_norm, h, rstd, block.qkv, shared, 0)
        needed = ctx.needs_input_grad[0]
        dx, d_lora, gradients = block.qkv.backward([dq, dk, dv.flatten(1)], lora_x, products, needs_dx=needed)
        dh = None
        if dx is not None:
            dh = block.norm_backward(block.attention_norm, dx, d_lora, h, rstd, block.qkv, shared, 0)
        return dh, None, None, *gradients


class _AttentionOutput(Function):
    """Attention output (T, heads x head_dim) and hidden states -> hidden states, (T, D)."""

    @staticmethod
    def forward(ctx: Any, attended: Tensor, h: Tensor, block: _Block, shared: _Pass, *_: Tensor) -> Tensor:
        lora_x = block.drop(attended, block.output, shared, 1)
        out, products = block.output.forward(attended, lora_x)
        ctx.block, ctx.shared = block, shared
        ctx.save_for_backward(attended, *products)
        return out.add_(h)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        block, shared = ctx.block, ctx.shared
        attended, *products = ctx.saved_tensors
        lora_x = block.drop(attended, block.output, shared, 1)
        dx, d_lora, gradients = block.output.backward([d_out], lora_x, products, needs_dx=True)
        if d_lora is not None:
            dx = elementwise.add_dropped(dx, d_lora, *block.dropout(block.output, shared, 1))
        return dx, d_out, None, None, *gradients


class _FeedForward(Function):
    """Hidden states (T, D) -> norm -> gates and ups -> product -> down, added to the hidden states."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, block: _Block, shared: _Pass, *_: Tensor) -> Tensor:
        x, lora_x, rstd = block.norm(block.feed_forward_norm, h, block.gate_up, shared, 2)
        gate_up, products = block.gate_up.forward(x, lora_x)
        del x, lora_x
        product, lora_product = block.product(gate_up, shared)
        if shared.recomputing:
            out, down_products = torch.empty_like(h), block.down.forward_products(lora_product)
        else:
            out, down_products = block.down.forward(product, lora_product)
            out += h
        ctx.block, ctx.shared, ctx.n_down = block, shared, len(down_products)
        ctx.save_for_backward(h, rstd, gate_up, *down_products, *products)
        return out

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        block, shared = ctx.block, ctx.shared
        h, rstd, gate_up, *products = ctx.saved_tensors
        d_gates, down_gradients = block.product_backward(d_out, gate_up, products[: ctx.n_down], shared)
        lora_x = block.renorm(block.feed_forward_norm, h, rstd, block.gate_up, shared, 2)
        dx, d_lora, gradients = block.gate_up.backward(d_gates, lora_x, products[ctx.n_down :], needs_dx=True)
        del d_gates, lora_x
        dh = block.norm_backward(block.feed_forward_norm, dx, d_lora, h, rstd, block.gate_up, shared, 2)
        return dh.add_(d_out), None, None, *gradients, *down_gradients


def _apply(function: type[Function], *arguments: Any) -> Any:
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


class _Block:
    """A decoder layer's projections, and the steps between them."""

    def __init__(self, layer: Any, number: int, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp

        def projections(*modules: Any) -> Projections:
            return Projections(modules, dtype)

        self.attention_norm, self.feed_forward_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.qkv = projections(attention.q_proj, attention.k_proj, attention.v_proj)
        self.output = projections(attention.o_proj)
        self.gate_up = projections(mlp.gate_proj, mlp.up_proj)
        self.down = projections(mlp.down_proj)
        self.projections = (self.qkv, self.output, self.gate_up, self.down)
        self.n_heads = attention.config.num_attention_heads
        self.n_kv_heads = attention.config.num_key_value_heads
        self.first_place = number * DROPOUT_PLACES

    def dropout(self, to: Projections, shared: _Pass, place: int) -> tuple[Tensor, Tensor, float]:
        """What the elementwise functions take for the dropout in front of `to`."""
        return shared.dropout_rows[self.first_place + place], shared.dropout_columns[to.n_columns], to.dropout

    def forward(self, h: Tensor, shared: _Pass) -> Tensor:
        """(T, D) -> (T, D)."""
        queries, keys, values = _apply(_AttentionInput, h, self, shared, *self.qkv.parameters())
        attended = packed_attention(queries, keys, values, shared.row.borders, shared.row.lengths).flatten(1)
        middle = _apply(_AttentionOutput, attended, h, self, shared, *self.output.parameters())
        out: Tensor = _apply(_FeedForward, middle, self, shared, *self.gate_up.parameters(), *self.down.parameters())
        return out

    def norm(self, norm: Any, h: Tensor, to: Projections, shared: _Pass, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised, the same with the dropout of `to`, and 1 / root mean square."""
        epsilon = norm.variance_epsilon
        if to.dropout:
            return elementwise.rms_norm_dropped(h, norm.weight, epsilon, *self.dropout(to, shared, place))
        x, rstd = elementwise.rms_norm(h, norm.weight, epsilon)
        return x, x, rstd

    def renorm(self, norm: Any, h: Tensor, rstd: Tensor, to: Projections, shared: _Pass, place: int) -> Tensor:
        """The second value of `norm` once more."""
        if to.dropout:
            return elementwise.renormalise_dropped(h, norm.weight, rstd, *self.dropout(to, shared, place))
        return elementwise.renormalise(h, norm.weight, rstd)

    def norm_backward(
        self,
        norm: Any,
        dx: Tensor,
        d_lora: Tensor | None,
        h: Tensor,
        rstd: Tensor,
        to: Projections,
        shared: _Pass,
        place: int,
    ) -> Tensor:
        """The gradient at h."""
        if d_lora is None:
            return elementwise.rms_norm_backward(dx, h, norm.weight, rstd)
        return elementwise.rms_norm_backward_dropped(dx, d_lora, h, norm.weight, rstd, *self.dropout(to, shared, place))

    def drop(self, x: Tensor, to: Projections, shared: _Pass, place: int) -> Tensor:
        """x with the dropout of `to`."""
        return elementwise.dropped(x, *self.dropout(to, shared, place)) if to.dropout else x

    def product(self, gate_up: Tensor, shared: _Pass) -> tuple[Tensor, Tensor]:
        """silu(gate) x up, and the same with dropout."""
        if self.down.dropout:
            return elementwise.swiglu_dropped(gate_up, *self.dropout(self.down, shared, 3))
        product = elementwise.swiglu(gate_up)
        return product, product

    def product_backward(
        self, d_out: Tensor, gate_up: Tensor, products: list[Tensor], shared: _Pass
    ) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
        """The gradients at gates and ups, and those of down's LoRA."""
        _, lora_product = self.product(gate_up, shared)
        d_product, d_lora, gradients = self.down.backward([d_out], lora_product, products, needs_dx=True)
        del lora_product
        assert d_product is not None  # noqa: S101  it was asked for
        if d_lora is None:
            return elementwise.swiglu_backward(d_product, gate_up), gradients
        return (
            elementwise.swiglu_backward_dropped(d_product, d_lora, gate_up, *self.dropout(self.down, shared, 3)),
            gradients,
        )


class _FinalNorm(Function):
    """(L, D) -> normalised, (L, D)."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, norm: Any) -> Tensor:
        x, rstd = elementwise.rms_norm(h, norm.weight, norm.variance_epsilon)
        ctx.norm = norm
        ctx.save_for_backward(h, rstd)
        return x

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        h, rstd = ctx.saved_tensors
        return elementwise.rms_norm_backward(dx, h, ctx.norm.weight, rstd), None


class _HeadLoss(Function):
    """Normalised hidden states (L, D), the frozen head (V, D) and targets (L,) -> the sum of losses in nats, float32.

    The gradient is computed at once, so that the logits of a few positions are in memory and never those of all.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden)
        step = HEAD_ROWS[hidden.device.type]
        for start in range(0, len(hidden), step):
            rows = slice(start, start + step)
            logits = hidden[rows] @ head.T
            losses, d_logits = elementwise.cross_entropy_with_gradient(logits, targets[rows])
            total += losses.sum()
            torch.mm(d_logits, head, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * d_total).to(gradient.dtype), None, None


class PackedLlama:
    """How a peft model on a Llama computes the loss of a packed row.

    `recomputed_share` of the blocks, evenly spread, keep only their input and compute the rest again. Raises InputError
    for an architecture that is not Llama's.
    """

    def __init__(self, causal: Any, dtype: torch.dtype, *, recomputed_share: float = 0.0) -> None:
        config = causal.config
        if config.model_type != "llama" or config.hidden_act != "silu":
            raise InputError(f"base: the architecture is {config.model_type}, training expects a Llama; use one")
        self.model, self.head, self.dtype = causal.model, causal.lm_head, dtype
        self.blocks = [_Block(layer, number, dtype) for number, layer in enumerate(causal.model.layers)]
        widths = {to.n_columns for block in self.blocks for to in block.projections}
        device = causal.model.norm.weight.device
        self.dropout_columns = {width: elementwise.dropout_columns(width, device) for width in widths}
        self.recomputed = recomputed_blocks(len(self.blocks), recomputed_share)
        for block, layer in zip(self.blocks, causal.model.layers, strict=True):
            layer.forward = types.MethodType(_block_forward, block)

    def flops_per_token(self, learned_share: float) -> float:
        """Floating-point operations of a token, forward and backward, with nothing computed twice; no attention.

        A frozen weight costs 4: 2 forward, 2 for the gradient at its input. A trained one costs 6. The head is asked
        for the learned tokens alone.
        """
        frozen = sum(to.n_rows * to.n_columns for block in self.blocks for to in block.projections)
        trained = sum(weight.numel() for block in self.blocks for to in block.projections for weight in to.parameters())
        return 4.0 * frozen + 6.0 * trained + 4.0 * learned_share * int(self.head.weight.numel())

    def hidden(self, row: PackedRow) -> Tensor:
        """(T, D): the hidden states after the last block."""
        h = self.model.embed_tokens(row.input_ids).to(self.dtype)
        cos, sin = self.model.rotary_emb(h[:0].float(), row.position_ids[None])
        cos, sin = cos[0], sin[0]
        sin[:, : sin.shape[1] // 2].neg_()
        rows = elementwise.dropout_rows(row.dropout_keys, DROPOUT_PLACES * len(self.blocks))
        shared = _Pass(row, cos, sin, rows, self.dropout_columns)
        for number, layer in enumerate(self.model.layers):
            if number in self.recomputed:
                h = checkpoint(
                    layer,
                    h,
                    shared,
                    use_reentrant=False,
                    preserve_rng_state=False,  # dropout needs none
                    context_fn=lambda: (contextlib.nullcontext(), shared.recomputation()),
                )
            else:
                h = layer(h, shared)
        out: Tensor = h
        return out

    def loss(self, row: PackedRow) -> Tensor:
        """The sum of the losses, in nats, of the tokens that are learned; () float32."""
        with torch.autocast(row.input_ids.device.type, enabled=False):
            h = self.hidden(row).index_select(0, row.learned)
            x = _apply(_FinalNorm, h, self.model.norm)
            total: Tensor = _apply(_HeadLoss, x, self.head.weight.to(self.dtype), row.targets)
        return total

    def logits(self, row: PackedRow) -> Tensor:
        """(T, V): the logits of every position, for tests and comparisons."""
        with torch.autocast(row.input_ids.device.type, enabled=False):
            logits: Tensor = _apply(_FinalNorm, self.hidden(row), self.model.norm) @ self.head.weight.to(self.dtype).T
        return logits


def _block_forward(block: _Block, h: Tensor, shared: _Pass) -> Tensor:
    return block.forward(h, shared)


def recomputed_blocks(n_blocks: int, share: float) -> frozenset[int]:
    """Which blocks are computed again: round(share x n_blocks) of them, evenly spread."""
    count = round(share * n_blocks)
    return frozenset(number * n_blocks // count for number in range(count)) if count else frozenset()
