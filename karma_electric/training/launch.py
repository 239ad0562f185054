"""Where training runs: in this process, or in several that accelerate launches. No parameter: it changes no recipe."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, ValidationError

from karma_electric.errors import InputError, SetupError
from karma_electric.parameters import Parameters
from karma_electric.training.starter import LAUNCHER_VARIABLE, Starter, process_name

_PREFIX = "KARMA_"


class RunSettings(Parameters):
    """The run settings of training: `launcher`, `processes` and `accelerate_config` (a file of accelerate's)."""

    launcher: Literal["none", "accelerate"] = "none"
    processes: int | None = Field(default=None, ge=1, description="null: one for each GPU")
    accelerate_config: str | None = None


def run_settings(local: Path, environment: Mapping[str, str]) -> RunSettings:
    """The settings in the untracked file `local`, if it is there, and over them KARMA_LAUNCHER, KARMA_PROCESSES and
    KARMA_ACCELERATE_CONFIG. Raises InputError."""
    values: object = {}
    if local.is_file():
        try:
            values = yaml.safe_load(local.read_text("utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(
                f"{local}: cannot be read as YAML ({error}); expected lines of the form key: value"
            ) from error
    if not isinstance(values, dict):
        raise InputError(f"{local}: found no keys; expected lines of the form key: value")
    known = {name: values[name] for name in RunSettings.model_fields if name in values}
    for name in RunSettings.model_fields:
        told = environment.get(_PREFIX + name.upper())
        if told:
            known[name] = int(told) if name == "processes" and told.isdecimal() else told
    try:
        return RunSettings.model_validate(known)
    except ValidationError as error:
        fault = error.errors()[0]
        raise InputError(f"{local} or {_PREFIX}{str(fault['loc'][0]).upper()}: {fault['msg']}; mend it") from error


def must_launch(settings: RunSettings, environment: Mapping[str, str]) -> bool:
    """True when other processes are to train, and this is none of them."""
    return settings.launcher == "accelerate" and "RANK" not in environment


def launch(settings: RunSettings, module: str, arguments: Sequence[str]) -> None:
    """Run `module` with `arguments` under `accelerate launch`, and wait for its end.

    Raises SetupError when it fails, or when the process that started this one ends: then the others are ended, too.
    """
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
