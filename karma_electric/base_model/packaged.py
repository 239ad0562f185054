"""A base model out of a GGUF file that an installed Python package carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from karma_electric.base_model.contents import remove_machine_traces
from karma_electric.base_model.packaged_file import verified_file
from karma_electric.base_model.params import PackagedBase
from karma_electric.base_model.quiet import offline_hub, quiet_libraries
from karma_electric.errors import InputError
from karma_electric.gguf_files.reader import read_header


def restore_pre_tokenizer(tokenizer: Any, source: Path) -> None:
    """Give the tokenizer the splitting of text that the GGUF file names; transformers knows only GPT-2's.

    For `smollm` that is single digits before GPT-2's words: without it "a  12" has other tokens than in training.
    Raises InputError for a name that this does not know.
    """
    name = read_header(source).metadata.get("tokenizer.ggml.pre")
    if name == "smollm":
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    elif name not in ("gpt-2", "default", None):
        raise InputError(f"base.file: {source.name} splits text as {name!r}, expected smollm or gpt-2; use a hub base")


def convert_packaged(params: PackagedBase, folder: Path) -> None:
    """Write the model into `folder`: bf16 safetensors, configs, tokenizer and chat template.

    Weights are dequantised to float32 and rounded to bf16, each once.
    """
    source = verified_file(params)
    with quiet_libraries(), offline_hub():
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),  # without it, saving is refused
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        restore_pre_tokenizer(tokenizer, source)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    remove_machine_traces(folder, source.parent, folder)
