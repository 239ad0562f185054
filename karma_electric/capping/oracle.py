"""A decoder in float64 numpy, straight from its weights: the oracle of the conformance kit.

It shares no code with PyTorch or llama.cpp, and its cap shares none with formula.py. For the architectures whose
mathematics it knows: Llama (with Llama 3's RoPE scaling), Qwen2 and Gemma. For small models: eight bytes a parameter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from karma_electric.canonical import read_json_object
from karma_electric.capping.formula import Cap
from karma_electric.errors import InputError
from karma_electric.gguf_files.llama_config import llama3_rope_factors
from karma_electric.gguf_files.model_tensors import ModelTensors

Array = NDArray[np.float64]
Lower = Callable[[int, Array], Array]  # (layer, states (positions, hidden_size)) -> states

_ACTIVATIONS = {"llama": "silu", "qwen2": "silu", "gemma": "gelu_pytorch_tanh"}


def exact_cap(cap: Cap, layer: int, hidden: Array) -> Array:
    """The cap by its meaning, row by row: above the ceiling, the part along v becomes tau + (1 - alpha)(p - tau).

    Projections are exactly rounded sums (math.fsum).
    """
    if layer not in cap.taus:
        return hidden
    axis, tau = cap.directions[layer].astype(np.float64), float(cap.taus[layer])
    lowered = hidden.copy()
    for row in range(len(hidden)):
        along = math.fsum((hidden[row] * axis).tolist())
        if along > tau:
            wanted = tau + (1 - cap.alpha) * (along - tau)
            lowered[row] = hidden[row] + (wanted - along) * axis
    return lowered


@dataclass
class Memory:
    """Keys and values so far: layer -> (heads, positions, head_size)."""

    keys: dict[int, Array]
    values: dict[int, Array]
    length: int = 0

    @classmethod
    def empty(cls) -> Memory:
        return cls({}, {})


class Oracle:
    """The model in a folder, all of its weights in float64 in memory."""

    def __init__(self, folder: Path) -> None:
        config = read_json_object(folder / "config.json")
        self.kind = str(config.get("model_type"))
        if self.kind not in _ACTIVATIONS or config.get("hidden_act", "silu") != _ACTIVATIONS[self.kind]:
            raise InputError(
                f"{folder}: model_type is {self.kind!r} with {config.get('hidden_act')!r}; the oracle knows "
                f"{', '.join(sorted(_ACTIVATIONS))}, so there is nothing to compare this model with"
            )
        self.hidden_size, self.blocks = int(config["hidden_size"]), int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._groups = int(config.get("num_key_value_heads") or self._heads)
        self._head_size = int(config.get("head_dim") or self.hidden_size // self._heads)
        self._epsilon = float(config["rms_norm_eps"])
        self._frequencies = _frequencies(config, self._head_size)
        tensors = ModelTensors(folder)
        self._weights = {name: tensors.load(name).double().numpy() for name in sorted(tensors.names)}

    def forward(self, token_ids: Sequence[int], memory: Memory, lower: Lower) -> Array:
        """Logits after each token, (tokens, vocab_size). `memory` grows; `lower` sees each block's output."""
        hidden = self._weights["model.embed_tokens.weight"][list(token_ids)]
        if self.kind == "gemma":
            hidden = hidden * math.sqrt(self.hidden_size)
        for layer in range(self.blocks):
            hidden = lower(layer, self._block(layer, hidden, memory))
        memory.length += len(token_ids)
        head = self._weights.get("lm_head.weight", self._weights["model.embed_tokens.weight"])
        logits: Array = self._norm(hidden, "model.norm") @ head.T
        return logits

    def _block(self, layer: int, hidden: Array, memory: Memory) -> Array:
        name = f"model.layers.{layer}"
        hidden = hidden + self._attend(layer, self._norm(hidden, f"{name}.input_layernorm"), memory)
        inner = self._norm(hidden, f"{name}.post_attention_layernorm")
        gate, up = self._linear(inner, f"{name}.mlp.gate_proj"), self._linear(inner, f"{name}.mlp.up_proj")
        return hidden + self._linear(self._activate(gate) * up, f"{name}.mlp.down_proj")

    def _attend(self, layer: int, hidden: Array, memory: Memory) -> Array:
        name, count = f"model.layers.{layer}.self_attn", len(hidden)
        positions = np.arange(memory.length, memory.length + count)
        queries = _rotate(self._split(hidden, f"{name}.q_proj", self._heads), positions, self._frequencies)
        keys = _rotate(self._split(hidden, f"{name}.k_proj", self._groups), positions, self._frequencies)
        values = self._split(hidden, f"{name}.v_proj", self._groups)
        if layer in memory.keys:
            keys = np.concatenate([memory.keys[layer], keys], axis=1)
            values = np.concatenate([memory.values[layer], values], axis=1)
        memory.keys[layer], memory.values[layer] = keys, values
        share = self._heads // self._groups
        keys, values = keys.repeat(share, axis=0), values.repeat(share, axis=0)  # (heads, seen, head_size)
        scores = queries @ keys.transpose(0, 2, 1) / math.sqrt(self._head_size)  # (heads, count, seen)
        scores[:, np.arange(keys.shape[1])[None, :] > positions[:, None]] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ values
        return self._linear(mixed.transpose(1, 0, 2).reshape(count, -1), f"{name}.o_proj")

    def _split(self, hidden: Array, name: str, heads: int) -> Array:
        """(heads, tokens, head_size)."""
        return self._linear(hidden, name).reshape(len(hidden), heads, self._head_size).transpose(1, 0, 2)

    def _linear(self, hidden: Array, name: str) -> Array:
        result: Array = hidden @ self._weights[f"{name}.weight"].T
        bias = self._weights.get(f"{name}.bias")
        return result if bias is None else result + bias

    def _norm(self, hidden: Array, name: str) -> Array:
        weight = self._weights[f"{name}.weight"] + (1.0 if self.kind == "gemma" else 0.0)
        result: Array = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + self._epsilon) * weight
        return result

    def _activate(self, gate: Array) -> Array:
        if self.kind == "gemma":  # GELU, by its tanh form
            activated: Array = 0.5 * gate * (1 + np.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            activated = gate / (1 + np.exp(-gate))
        return activated


def _rotate(vectors: Array, positions: NDArray[np.int64], frequencies: Array) -> Array:
    """RoPE as Hugging Face lays it out: value i of a head turns with value i + head_size / 2."""
    angles = positions[:, None] * frequencies  # (tokens, head_size / 2)
    first, second = np.split(vectors, 2, axis=-1)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def _frequencies(config: dict[str, Any], head_size: int) -> Array:
    """Of RoPE, (head_size / 2,)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10_000.0)))
    frequencies: Array = theta ** -(np.arange(0, head_size, 2, dtype=np.float64) / head_size)
    kind = rope.get("rope_type", "default")
    if kind == "llama3":
        frequencies = frequencies / llama3_rope_factors(
            theta=theta,
            head_size=head_size,
            factor=float(rope["factor"]),
            low=float(rope["low_freq_factor"]),
            high=float(rope["high_freq_factor"]),
            original_context=float(rope["original_max_position_embeddings"]),
        ).astype(np.float64)
    elif kind != "default":
        raise InputError(f"rope_type is {kind!r}; the oracle knows default and llama3")
    return frequencies
