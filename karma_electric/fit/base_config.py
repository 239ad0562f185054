"""The configuration of the recipe's base model, found without loading or fetching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from karma_electric.base_model.params import BaseParams, FolderBase, HubBase
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.llama_config import LlamaConfig, read_llama_config


def base_config(base: BaseParams, made: Path) -> LlamaConfig:
    """From `made`, the stage's output, where it is there; else from the recipe's folder, package or the hub's cache.

    Raises InputError for a base whose configuration is not on this machine.
    """
    if (made / "config.json").is_file():
        return read_llama_config(made)
    if isinstance(base, FolderBase):
        return read_llama_config(Path(base.path).expanduser())
    if isinstance(base, HubBase):
        return read_llama_config(_cached_folder(base))
    from karma_electric.base_model.packaged_file import find_file

    return _gguf_config(find_file(base))


def _cached_folder(base: HubBase) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(base.repo, "config.json", revision=base.revision)
    if not isinstance(found, str):
        raise InputError(
            f"base.repo: the configuration of {base.repo} is not on this machine; fetch it with "
            f"`hf download {base.repo} config.json --revision {base.revision}`"
        )
    return Path(found).parent


def _gguf_config(path: Path) -> LlamaConfig:
    from karma_electric.gguf_files.reader import read_header

    header = read_header(path)

    def number(key: str) -> Any:
        value = header.metadata.get(f"llama.{key}")
        if not isinstance(value, int | float):
            raise IntegrityError(f"{path}: names no llama.{key}; install the package again")
        return value

    heads, hidden_size = number("attention.head_count"), number("embedding_length")
    return LlamaConfig(
        context_length=number("context_length"),
        hidden_size=hidden_size,
        feed_forward_length=number("feed_forward_length"),
        blocks=number("block_count"),
        heads=heads,
        key_value_heads=number("attention.head_count_kv"),
        head_size=hidden_size // heads,
        rope_theta=number("rope.freq_base"),
        rms_norm_epsilon=number("attention.layer_norm_rms_epsilon"),
        vocab_size=len(header.metadata["tokenizer.ggml.tokens"]),
        tied_embeddings=all(tensor.name != "output.weight" for tensor in header.tensors),
        rope_factors=None,
    )
