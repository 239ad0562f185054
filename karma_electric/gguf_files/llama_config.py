"""The hyper-parameters of a Llama model, from the config.json of a Hugging Face folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from karma_electric.errors import InputError

ARCHITECTURE: Final = "LlamaForCausalLM"
MAX_CONFIG_BYTES: Final = 1024 * 1024
DEFAULT_ROPE_THETA: Final = 10_000.0

# Keys that change the computation, and the only value that the GGUF written here can stand for.
_FIXED_KEYS: Final[dict[str, Any]] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}


@dataclass(frozen=True)
class LlamaConfig:
    """What llama.cpp has to know about a Llama model. Sizes are counts of values, not bytes."""

    context_length: int
    hidden_size: int
    feed_forward_length: int
    blocks: int
    heads: int
    key_value_heads: int
    head_size: int
    rope_theta: float
    rms_norm_epsilon: float
    vocab_size: int
    tied_embeddings: bool
    rope_factors: NDArray[np.float32] | None  # (head_size / 2,): divisors of the rotation frequencies


def read_llama_config(folder: Path) -> LlamaConfig:
    """The hyper-parameters in `folder`/config.json.

    Raises InputError naming the key when the architecture is another, a value is missing or of the wrong kind, or the
    model computes something that the file could not express (a bias, another activation, another scaling of RoPE).
    """
    path = folder / "config.json"
    config = _read_json_object(path)
    if config.get("architectures") != [ARCHITECTURE]:
        raise InputError(f"{path}: architectures is {config.get('architectures')}, expected ['{ARCHITECTURE}']")
    for key, only in _FIXED_KEYS.items():
        if config.get(key, only) != only:
            raise InputError(f"{path}: {key} is {config[key]!r}, only {only!r} can be written to GGUF")
    heads = _whole(config, "num_attention_heads", path)
    hidden_size = _whole(config, "hidden_size", path)
    head_size = _whole(config, "head_dim", path, default=hidden_size // heads)
    key_value_heads = _whole(config, "num_key_value_heads", path, default=heads)
    if heads % key_value_heads or head_size % 2:
        raise InputError(
            f"{path}: {heads} heads over {key_value_heads} key-value heads of size {head_size}; "
            "expected a whole number of heads for each key-value head, and an even size"
        )
    context_length = _whole(config, "max_position_embeddings", path)
    rope = _rope_parameters(config, path)
    theta = _positive(rope, "rope_theta", path, default=DEFAULT_ROPE_THETA)
    return LlamaConfig(
        context_length=context_length,
        hidden_size=hidden_size,
        feed_forward_length=_whole(config, "intermediate_size", path),
        blocks=_whole(config, "num_hidden_layers", path),
        heads=heads,
        key_value_heads=key_value_heads,
        head_size=head_size,
        rope_theta=theta,
        rms_norm_epsilon=_positive(config, "rms_norm_eps", path),
        vocab_size=_whole(config, "vocab_size", path),
        tied_embeddings=config.get("tie_word_embeddings", False) is True,
        rope_factors=_rope_factors(rope, theta, head_size, context_length, path),
    )


def llama3_rope_factors(
    *, theta: float, head_size: int, factor: float, low: float, high: float, original_context: float
) -> NDArray[np.float32]:
    """The divisor of each rotation frequency under Llama 3's scaling: (head_size / 2,).

    With wavelength L = 2 pi theta^(2i/d) and s = (original_context / L - low) / (high - low), cut to 0..1, the new
    frequency is f (s + (1 - s) / factor): short waves stay, long ones are stretched by `factor`, those between blend.
    Source: `apply_scaling` of Meta's llama-models, and `_compute_llama3_parameters` of transformers. ggml divides the
    frequency by the tensor `rope_freqs.weight`, so the tensor is the inverse of the bracket.
    """
    exponents = np.arange(0, head_size, 2, dtype=np.float64) / head_size
    wavelengths = 2 * np.pi * theta**exponents
    smooth = np.clip((original_context / wavelengths - low) / (high - low), 0.0, 1.0)
    return (1.0 / (smooth + (1.0 - smooth) / factor)).astype(np.float32)


def _rope_parameters(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """One mapping for both spellings: `rope_parameters`, or the older `rope_theta` beside `rope_scaling`."""
    new, old = config.get("rope_parameters"), config.get("rope_scaling")
    if new is not None and old is not None:
        raise InputError(f"{path}: has both rope_parameters and rope_scaling; keep the one that it was trained with")
    rope = new if new is not None else old if old is not None else {}
    if not isinstance(rope, dict):
        raise InputError(f"{path}: rope_parameters is {rope!r}, expected an object")
    shared = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    return {**shared, **rope}


def _rope_factors(
    rope: dict[str, Any], theta: float, head_size: int, context_length: int, path: Path
) -> NDArray[np.float32] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(f"{path}: partial_rotary_factor is {rope['partial_rotary_factor']!r}, only 1.0 can be written")
    if kind == "default":
        return None
    if kind != "llama3":
        raise InputError(f"{path}: rope_type is {kind!r}, expected default or llama3; other scalings are not written")
    low = _positive(rope, "low_freq_factor", path)
    high = _positive(rope, "high_freq_factor", path)
    if low >= high:
        raise InputError(f"{path}: low_freq_factor is {low} and high_freq_factor {high}; expected low < high")
    return llama3_rope_factors(
        theta=theta,
        head_size=head_size,
        factor=_positive(rope, "factor", path),
        low=low,
        high=high,
        original_context=_positive(rope, "original_max_position_embeddings", path, default=float(context_length)),
    )


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is no model's config")
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected the config.json of a Llama model") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: found a {type(value).__name__}, expected a JSON object")
    return value


def _whole(values: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = values.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InputError(f"{path}: {key} is {value!r}, expected a whole number above 0")
    return value


def _positive(values: dict[str, Any], key: str, path: Path, default: float | None = None) -> float:
    value = values.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise InputError(f"{path}: {key} is {value!r}, expected a number above 0")
    return float(value)
