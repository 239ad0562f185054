"""Tiny random models of the architectures that our GGUF writer doesn't write, as folders and as GGUF files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
import transformers

from karma_electric.gguf_files.model_metadata import add_vocabulary
from karma_electric.gguf_files.vocabulary import read_vocabulary

Architecture = Literal["qwen2", "gemma"]

_BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_model(architecture: Architecture, tiny_llama: Path, folder: Path) -> Path:
    """A random model in float32 with the tokenizer of the tiny Llama."""
    shared: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.05,
    }  # fmt: skip
    torch.manual_seed(4)
    if architecture == "qwen2":
        config: Any = transformers.Qwen2Config(**shared, tie_word_embeddings=False)
    else:
        config = transformers.GemmaConfig(**shared, head_dim=64)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # they start as zeros and ones
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llama / name, folder / name)
    return folder


def write_other_gguf(folder: Path, vocabulary: Path, output: Path) -> Path:
    """The folder as one F32 file, with the vocabulary of another folder: transformers changes that of a Qwen2."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(output, arch=config.model_type)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(64)
    writer.add_value_length(64)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_vocabulary(writer, read_vocabulary(vocabulary, config.vocab_size))
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        shift = 1.0 if config.model_type == "gemma" and "norm" in name else 0.0  # ggml's norm does not add it
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray((tensor + shift).numpy(), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def _gguf_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{_BLOCK_NAMES['.'.join(parts[2:-1])]}.{parts[-1]}"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]] + f".{parts[-1]}"
