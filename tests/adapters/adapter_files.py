"""Adapters on disk for tests: written plainly, or made by peft."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from karma_electric.adapters.files import CONFIG_NAME, WEIGHTS_NAME, tensor_name
from karma_electric.integrity import MANIFEST_NAME, sha256_file, write_manifest

BASE = "ab" * 32


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, base: str = BASE) -> Path:
    """An adapter folder with its manifest, whatever is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    safetensors.torch.save_file(dict(tensors), folder / WEIGHTS_NAME, {"format": "pt"})
    write_manifest(folder, {"base": base})
    return folder


def plain_config(rank: int, alpha: float, targets: list[str], **more: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "bias": "none", **more}


def write_plain_adapter(
    folder: Path, modules: Mapping[str, tuple[Tensor, Tensor]], *, alpha: float, base: str = BASE
) -> Path:
    """An adapter of modules: name -> (A, B); ranks may differ, alpha is one."""
    ranks = {name: a.shape[0] for name, (a, _) in modules.items()}
    rank = next(iter(ranks.values()))
    pattern = {name: found for name, found in ranks.items() if found != rank}
    config = plain_config(rank, alpha, sorted(modules), rank_pattern=pattern)
    tensors = {}
    for name, (a, b) in modules.items():
        tensors[tensor_name(name, "A")] = a.clone()
        tensors[tensor_name(name, "B")] = b.clone()
    return write_folder(folder, config, tensors, base=base)


def random_factors(
    out_features: int, in_features: int, rank: int, *, seed: int, kind: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank)."""
    dice = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, in_features, generator=dice)
    return a.to(kind), torch.randn(out_features, rank, generator=dice).to(kind)


def make_peft_adapter(
    base: Path, folder: Path, *, seed: int, rank: int = 4, alpha: float = 8, targets: list[str], **more: Any
) -> Path:
    """An adapter that peft itself made on the model in `base`, with random B, saved by peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", **more)
    model = get_peft_model(load_base(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    write_manifest(folder, {"base": sha256_file(base / MANIFEST_NAME)})
    return folder


def load_base(base: Path) -> Any:
    """The model in `base`, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def peft_updates(base: Path, adapter: Path) -> dict[str, Tensor]:
    """Module name -> the dense update, as peft computes it from the folder, float32."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    model = PeftModel.from_pretrained(load_base(base), adapter)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }
