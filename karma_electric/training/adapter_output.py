"""A trained adapter on disk: peft's two files, the same bytes in every run, checked after they were written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError
from karma_electric.safetensors_files import open_safetensors

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def save_adapter(
    model: Any, folder: Path, *, base_repo: str, n_modules: int, adapter: dict[str, Tensor] | None = None
) -> None:
    """Write the LoRA of the peft model into `folder`; `n_modules` linear layers must carry one.

    `adapter`: its tensors by the model's names for them, where the model holds only a share of each.

    Raises InputError for an adapter that holds NaN or infinity, or that training left at zero.
    """
    # "auto" would look the base up in the hub to see whether its vocabulary was changed.
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False, state_dict=adapter)
    (folder / "README.md").unlink(missing_ok=True)
    found = sorted(path.name for path in folder.iterdir())
    if found != [CONFIG_NAME, WEIGHTS_NAME]:
        raise RuntimeError(f"peft wrote {found}, expected {CONFIG_NAME} and {WEIGHTS_NAME}")
    _rewrite_config(folder / CONFIG_NAME, base_repo)
    _check_weights(folder / WEIGHTS_NAME, n_modules)


def _rewrite_config(path: Path, base_repo: str) -> None:
    """Name the base by its repo instead of a local folder, and give sets an order."""
    config = read_json_object(path) | {"base_model_name_or_path": base_repo, "revision": None}
    config["target_modules"] = sorted(config["target_modules"])
    path.write_text(readable_json(dict(sorted(config.items()))), "utf-8")


def _check_weights(path: Path, n_modules: int) -> None:
    weights = open_safetensors(path)
    if len(weights.tensors) != 2 * n_modules:
        raise RuntimeError(f"{path.name} holds {len(weights.tensors)} tensors, expected {2 * n_modules}")
    changed = 0
    for name in weights.tensors:
        tensor = weights.load(name)
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"train: {name} holds NaN or infinity; lower train.learning_rate")
        changed += "lora_B" in name and bool(tensor.count_nonzero())
    if changed == 0:  # B starts at zero, so the adapter would do nothing
        raise InputError("train: no step changed the adapter; raise train.epochs, or train.learning_rate")
