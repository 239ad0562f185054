"""Where training runs: in this process, or in several that accelerate launches. No parameter: it changes no recipe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from karma_electric.errors import InputError, SetupError
from karma_electric.parameters import Parameters, parse_parameters, read_yaml
from karma_electric.training.starter import LAUNCHER_VARIABLE, Starter, process_name

_PREFIX = "KARMA_"

_FSDP_ASKED = "ACCELERATE_USE_FSDP"  # what accelerate tells the processes that it launches
_FSDP_FILE = "profiles/accelerate/fsdp.yaml"

# What a configuration of accelerate for FSDP can say, and the only value that means what sharding.py does.
_FSDP_EXPECTED = {
    "fsdp_version": "2",
    "fsdp_reshard_after_forward": "true",
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    "fsdp_offload_params": "false",
    "fsdp_activation_checkpointing": "false",  # train.recomputed_share does that
}


class RunSettings(Parameters):
    """The run settings of training: `launcher`, `processes` and `accelerate_config` (a file of accelerate's)."""

    launcher: Literal["none", "accelerate"] = "none"
    processes: int | None = Field(default=None, ge=1, description="null: one for each GPU")
    accelerate_config: str | None = None


def run_settings(local: Path, environment: Mapping[str, str]) -> RunSettings:
    """The settings in the untracked file `local`, if it is there, and over them KARMA_LAUNCHER, KARMA_PROCESSES and
    KARMA_ACCELERATE_CONFIG. Raises InputError."""
    values = read_yaml(local) if local.is_file() else {}
    for name in RunSettings.model_fields:
        told = environment.get(_PREFIX + name.upper())
        if told:
            values[name] = int(told) if name == "processes" and told.isdecimal() else told
    return parse_parameters(values, RunSettings, where=f"{local} or {_PREFIX}*")


def check_accelerate_config(path: Path) -> None:
    """Raise InputError for a file of accelerate's that asks for another way of sharding than ours, before a launch."""
    values = read_yaml(path)
    if values.get("distributed_type") == "FSDP":
        told = values.get("fsdp_config")
        _check_fsdp({key: _spelt(value) for key, value in told.items()} if isinstance(told, dict) else {}, str(path))


def take_over_fsdp(environment: MutableMapping[str, str]) -> bool:
    """True when accelerate was told to shard the model. It then no longer is: its trainer would do it once more.

    Raises InputError for a configuration that asks for another way of sharding than ours.
    """
    if environment.get(_FSDP_ASKED, "false").lower() != "true":
        return False
    names = {key: key.replace("_layer_cls_", "_cls_").upper() for key in _FSDP_EXPECTED}
    _check_fsdp({key: environment[name] for key, name in names.items() if name in environment}, "accelerate")
    del environment[_FSDP_ASKED]
    return True


def _check_fsdp(told: Mapping[str, str], where: str) -> None:
    for key, expected in _FSDP_EXPECTED.items():
        found = told.get(key, "missing")
        if found != expected:
            raise InputError(f"{where}: {key} is {found}, training expects {expected}; take {_FSDP_FILE}")


def _spelt(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def must_launch(settings: RunSettings, environment: Mapping[str, str]) -> bool:
    """True when other processes are to train, and this is none of them."""
    return settings.launcher == "accelerate" and "RANK" not in environment


def launch(settings: RunSettings, module: str, arguments: Sequence[str]) -> None:
    """Run `module` with `arguments` under `accelerate launch`, and wait for its end.

    Raises SetupError when it fails, or when the process that started this one ends: then the others are ended, too.
    Raises InputError for a file of accelerate's that training does not follow.
    """
    if settings.accelerate_config is not None:
        check_accelerate_config(Path(settings.accelerate_config))
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch_options(settings), "-m", module, *arguments]
    starter = Starter()
    with subprocess.Popen(command, env=os.environ | {LAUNCHER_VARIABLE: process_name()}) as launched:
        while launched.poll() is None:
            if not starter.is_alive():
                launched.terminate()
                launched.wait()
                starter.require("train")
            time.sleep(0.2)
    if launched.returncode:
        raise SetupError(f"train: a launched process ended with {launched.returncode}; its own line is above")


def launch_options(settings: RunSettings) -> list[str]:
    """What `accelerate launch` is told; `processes` wins over what a file of accelerate's says."""
    if settings.accelerate_config is not None:
        number = ["--num_processes", str(settings.processes)] if settings.processes else []
        return ["--config_file", settings.accelerate_config, *number]
    processes = settings.processes or _visible_gpus()
    several = ["--multi_gpu"] if processes > 1 else []
    return [
        *several, "--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "bf16",
        "--dynamo_backend", "no", "--main_process_port", "0",
    ]  # fmt: skip


def _visible_gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())
