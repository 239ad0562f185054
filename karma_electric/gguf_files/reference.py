"""Logits of a Hugging Face folder in PyTorch, float32, with one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from karma_electric.gguf_files.model_tensors import ModelTensors


def reference_logits(model_folder: Path, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """(n,) token ids -> (n, vocab_size) logits of transformers' own LlamaForCausalLM with weights widened to float32.

    The model is built without storage; each of its parts loads its weights before it runs and drops them after, so the
    peak is the largest of embeddings and block, whatever the number of blocks.
    """
    config = AutoConfig.from_pretrained(model_folder, local_files_only=True, attn_implementation="eager")
    tensors = ModelTensors(model_folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    model.model.rotary_emb = LlamaRotaryEmbedding(config=config)
    embeddings = "model.embed_tokens"
    parts = [(model.model.embed_tokens, embeddings), (model.model.norm, "model.norm")]
    parts += [(layer, f"model.layers.{index}") for index, layer in enumerate(model.model.layers)]
    parts.append((model.lm_head, embeddings if config.tie_word_embeddings else "lm_head"))
    for module, name in parts:
        _load_while_running(module, name, tensors)
    with torch.no_grad():
        logits = model(torch.tensor([list(token_ids)]), use_cache=False).logits[0]
    result: NDArray[np.float32] = logits.to(torch.float32).numpy()
    return result


def _load_while_running(module: torch.nn.Module, name: str, tensors: ModelTensors) -> None:
    def load(part: torch.nn.Module, _: Any) -> None:
        weights = {key: tensors.load(f"{name}.{key}").to(torch.float32) for key, _ in part.named_parameters()}
        part.load_state_dict(weights, assign=True)

    def drop(part: torch.nn.Module, _: Any, __: Any) -> None:
        part.to_empty(device="meta")

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
