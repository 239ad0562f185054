"""The largest train.tokens_per_microbatch that a machine can hold, and how it comes into the recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from karma_electric.errors import InputError
from karma_electric.fit.machine import Machine
from karma_electric.fit.training_memory import longest_row, needed_device_bytes, needed_host_bytes
from karma_electric.fit.training_set import TrainingSet
from karma_electric.gguf_files.llama_config import LlamaConfig
from karma_electric.integrity import write_text
from karma_electric.training.params import TrainParams

_STEP_TOKENS: Final = 512
_SHARE_OF_MEMORY: Final = 0.9  # an allocator loses some
_LINE: Final = re.compile(r"^(  tokens_per_microbatch: *)\d+", re.MULTILINE)


def training_room(machine: Machine) -> int:
    """Bytes that training may take: of the smallest GPU, or of the host where there is none."""
    whole = min((gpu.memory_bytes for gpu in machine.gpus), default=machine.memory_bytes)
    return round(_SHARE_OF_MEMORY * whole)


def proposed_budget(
    config: LlamaConfig, params: TrainParams, sets: Sequence[TrainingSet], machine: Machine
) -> int | None:
    """Tokens a microbatch: as many as fit, but no more than the longest step has, for more changes nothing.

    None where not even one sequence of `max_length` fits.
    """
    needed = needed_device_bytes if machine.gpus else needed_host_bytes
    room = training_room(machine)
    most = max(sum(step) for found in sets for step in found.steps)
    candidates = range(_up(params.max_length), max(_up(most), _up(params.max_length)) + 1, _STEP_TOKENS)
    for budget in reversed(candidates):
        row = max(longest_row(found.steps, budget) for found in sets)
        if needed(config, params, row) <= room:
            return budget
    return None


def write_budget(recipe: Path, budget: int) -> None:
    """Put `budget` into the file in the place of train.tokens_per_microbatch; all else stays as it is."""
    text = recipe.read_text("utf-8")
    changed, count = _LINE.subn(rf"\g<1>{budget}", text)
    if count != 1:
        raise InputError(
            f"{recipe}: train.tokens_per_microbatch stands on {count} lines of its own, expected 1; set it to {budget}"
        )
    write_text(recipe, changed)


def _up(tokens: int) -> int:
    return -(-tokens // _STEP_TOKENS) * _STEP_TOKENS
