"""Which tensors of a Llama go into a GGUF file, under which name, and how their rows are turned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from karma_electric.errors import InputError
from karma_electric.gguf_files.llama_config import LlamaConfig
from karma_electric.gguf_files.model_tensors import ModelTensors

OUTPUT_NAME: Final = "lm_head.weight"
EMBEDDING_NAME: Final = "model.embed_tokens.weight"
_COMPUTED_SUFFIX: Final = ".rotary_emb.inv_freq"  # a table that old checkpoints stored; it follows from the config


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One tensor to write: its name, where it is from, and its shape there, (rows, row length) or (length,)."""

    name: str
    source: str
    shape: tuple[int, ...]
    rotated_heads: int | None = None  # q and k only: how many heads the rows are

    @property
    def is_matrix(self) -> bool:
        """Norms are vectors, and stay F32."""
        return len(self.shape) > 1


def plan_tensors(config: LlamaConfig) -> Iterator[PlannedTensor]:
    """Every tensor of the model but the RoPE factors, in the order of the model."""
    hidden, feed = config.hidden_size, config.feed_forward_length
    queries, keys = config.heads * config.head_size, config.key_value_heads * config.head_size
    yield PlannedTensor("token_embd.weight", EMBEDDING_NAME, (config.vocab_size, hidden))
    for block in range(config.blocks):
        here, there = f"blk.{block}", f"model.layers.{block}"
        attention, feeding = f"{there}.self_attn", f"{there}.mlp"
        yield PlannedTensor(f"{here}.attn_norm.weight", f"{there}.input_layernorm.weight", (hidden,))
        yield PlannedTensor(f"{here}.attn_q.weight", f"{attention}.q_proj.weight", (queries, hidden), config.heads)
        yield PlannedTensor(
            f"{here}.attn_k.weight", f"{attention}.k_proj.weight", (keys, hidden), config.key_value_heads
        )
        yield PlannedTensor(f"{here}.attn_v.weight", f"{attention}.v_proj.weight", (keys, hidden))
        yield PlannedTensor(f"{here}.attn_output.weight", f"{attention}.o_proj.weight", (hidden, queries))
        yield PlannedTensor(f"{here}.ffn_norm.weight", f"{there}.post_attention_layernorm.weight", (hidden,))
        yield PlannedTensor(f"{here}.ffn_gate.weight", f"{feeding}.gate_proj.weight", (feed, hidden))
        yield PlannedTensor(f"{here}.ffn_up.weight", f"{feeding}.up_proj.weight", (feed, hidden))
        yield PlannedTensor(f"{here}.ffn_down.weight", f"{feeding}.down_proj.weight", (hidden, feed))
    yield PlannedTensor("output_norm.weight", "model.norm.weight", (hidden,))
    if not config.tied_embeddings:  # without output.weight llama.cpp takes token_embd.weight
        yield PlannedTensor("output.weight", OUTPUT_NAME, (config.vocab_size, hidden))


def check_source(source: ModelTensors, plan: Sequence[PlannedTensor], config: LlamaConfig) -> None:
    """Raises InputError for a tensor that is missing, unknown or of another shape than the config makes it."""
    known = {tensor.source for tensor in plan}
    for tensor in plan:
        if (found := source.shape(tensor.source)) != tensor.shape:
            raise InputError(
                f"{source.folder}: {tensor.source} has the shape {found}, config.json makes it {tensor.shape}"
            )
    for name in sorted(source.names - known):
        if config.tied_embeddings and name == OUTPUT_NAME:
            if not torch.equal(source.load(name), source.load(EMBEDDING_NAME)):
                raise InputError(
                    f"{source.folder}: tie_word_embeddings is true, but {OUTPUT_NAME} differs from {EMBEDDING_NAME}"
                )
        elif not name.endswith(_COMPUTED_SUFFIX):
            raise InputError(f"{source.folder}: the tensor {name} has no place in a Llama GGUF; remove or merge it")


def rotate_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of a query or key projection, (heads * head_size, ...), in ggml's order.

    Hugging Face rotates value i of a head with value i + head_size/2, ggml's `llama` rotates neighbours 2i and 2i + 1;
    so the two halves of each head are interleaved.
    """
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def restore_pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """What `rotate_pairs` was given: rows in the order of Hugging Face."""
    pairs = tensor.reshape(heads, tensor.shape[0] // heads // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)


def check_finite(converted: torch.Tensor, values: torch.Tensor, where: str, gguf_type: str) -> None:
    """Raises InputError, starting with `where`, when `values` cannot be stored as `gguf_type`."""
    if not torch.isfinite(converted).all():
        largest = values.abs().max().item()
        raise InputError(
            f"{where} is not finite as {gguf_type} (largest value {largest:g}); "
            "a NaN is a failed training, beyond 65504 takes BF16"
        )
