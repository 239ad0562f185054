"""Variants of the tiny Llama: other shapes, other tokenizers, the same kind of folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from karma_electric.gguf_files.vocabulary import LLAMA3_WORDS
from karma_electric.integrity import write_manifest
from tests.tiny_model import SPECIAL_TOKENS

BYTES_AND_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_ONLY = BYTES_AND_WORDS | {"use_regex": False}
LLAMA3_SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3_WORDS}, "behavior": "Isolated", "invert": False}
BOS = "<|im_start|>"
CORPUS = "\n".join(
    f"if x{n} >= {n * 37}:\n    y = ({n}, {n + 1000}); # we'll, I'm, THEY'RE, it's\n\n\n"
    f"\ttotal  {n * 3}.{n}   kůň {n}%\r\n"
    for n in range(200)
)


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text("utf-8"))
    edit(value)
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


def copy_of(model: Path, folder: Path) -> Path:
    """A copy without manifest, to be edited; `sealed` writes one."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("manifest.json"))
    return folder


def sealed(folder: Path) -> Path:
    write_manifest(folder, {"source": "folder"})
    return folder


def with_random_weights(model: Path, folder: Path, **config: Any) -> Path:
    """The tokenizer of `model` under a new random Llama whose config differs by `config`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    copy_of(model, folder)
    settings = json.loads((model / "config.json").read_text("utf-8")) | config
    torch.manual_seed(7)
    LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def in_two_shards(model: Path, folder: Path) -> Path:
    """The same tensors in two files and an index, as large models come."""
    from safetensors.torch import load_file, save_file

    copy_of(model, folder)
    (folder / "model.safetensors").unlink()
    tensors = load_file(model / "model.safetensors")
    weight_map: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    return folder


def retrain(model: Path) -> int:
    """Train the tokenizer anew, with its own way of splitting, on text where the ways differ; return its size."""
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([CORPUS] * 3, trainer)
    tokenizer.save(str(model / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def use_words_only(spec: dict[str, Any]) -> None:
    """The pre-tokenizer that llama.cpp calls gpt-2."""
    spec["pre_tokenizer"] = BYTES_AND_WORDS


def use_llama3(spec: dict[str, Any]) -> None:
    """Llama 3's pre-tokenizer, its ignore_merges, and a post-processor that puts bos first."""
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [LLAMA3_SPLIT, BYTES_ONLY]}
    spec["model"]["ignore_merges"] = True
    first: list[dict[str, Any]] = [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [1], "tokens": [BOS]}},
    }
