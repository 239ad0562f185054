"""Logits of a Llama in PyTorch, float32, with one decoder block in memory at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, LlamaModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from karma_electric.gguf_files.planned_tensors import EMBEDDING_NAME, OUTPUT_NAME

_HEAD_ROWS: Final = 16384  # of the language-model head that are in memory at once


class Weights(Protocol):
    """Tensors by their Hugging Face names, in any type of float."""

    def load(self, name: str) -> torch.Tensor:
        """The whole tensor."""

    def load_rows(self, name: str, rows: slice) -> torch.Tensor:
        """Some of its rows."""


def reference_logits(model_folder: Path, weights: Weights, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """(n,) token ids -> (n, vocab_size) logits of transformers' own LlamaModel with `weights` widened to float32.

    `model_folder` has the configuration. The model is built without storage; each block loads its weights before it
    runs and drops them after, and embeddings and head are read in parts, so the peak does not grow with the model's
    depth or vocabulary.
    """
    config = AutoConfig.from_pretrained(model_folder, local_files_only=True, attn_implementation="eager")
    with torch.device("meta"):
        model = LlamaModel(config).eval()
    model.rotary_emb = LlamaRotaryEmbedding(config=config)
    for module, name in [
        (model.norm, "model.norm"),
        *((layer, f"model.layers.{index}") for index, layer in enumerate(model.layers)),
    ]:
        _load_while_running(module, name, weights)
    embedded = torch.cat([weights.load_rows(EMBEDDING_NAME, slice(each, each + 1)) for each in token_ids])
    head = EMBEDDING_NAME if config.tie_word_embeddings else OUTPUT_NAME
    with torch.no_grad():
        hidden = model(inputs_embeds=embedded.to(torch.float32)[None], use_cache=False).last_hidden_state[0]
        parts = [
            hidden @ weights.load_rows(head, slice(first, min(first + _HEAD_ROWS, config.vocab_size))).float().T
            for first in range(0, config.vocab_size, _HEAD_ROWS)
        ]
    logits: NDArray[np.float32] = torch.cat(parts, dim=1).numpy()
    return logits


def _load_while_running(module: torch.nn.Module, name: str, weights: Weights) -> None:
    def load(part: torch.nn.Module, *_: Any) -> None:
        part.load_state_dict(
            {key: weights.load(f"{name}.{key}").to(torch.float32) for key, _ in part.named_parameters()}, assign=True
        )

    def drop(part: torch.nn.Module, *_: Any) -> None:
        part.to_empty(device="meta")

    module.register_forward_pre_hook(load)
    module.register_forward_hook(drop)
