"""One trainer, or one of several that accelerate launched: which it is, and what only the first may do."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from karma_electric.training.checkpoints import CheckpointStore, open_store, run_folder
from karma_electric.training.launch import take_over_fsdp


@dataclass(frozen=True, slots=True)
class TrainingProcess:
    """This process among those that train together. `machine` is what else can change a bit of the result.

    `sharded`: each keeps a share of the model.
    """

    is_first: bool
    sharded: bool
    machine: dict[str, Any]
    _state: Any

    @contextlib.contextmanager
    def checkpoints(
        self, store: Path, key: str, output: Path, report: Callable[[str], None], *, every_step: bool
    ) -> Iterator[CheckpointStore]:
        """The checkpoints of run `key`: locked and written by the first process, read by all."""
        opened: AbstractContextManager[CheckpointStore]
        if self.is_first:
            opened = open_store(store, key, output, report, every_step=every_step)
        else:
            opened = contextlib.nullcontext(CheckpointStore(run_folder(store, key), report, every_step=every_step))
        with opened as checkpoints:
            self._state.wait_for_everyone()  # until the first holds the lock
            yield checkpoints


@contextlib.contextmanager
def this_process() -> Iterator[TrainingProcess]:
    """Join the other processes, where there are some, and leave them at the end.

    Raises InputError for an accelerate configuration that training does not follow.
    """
    sharded = take_over_fsdp(os.environ)
    on_cuda = torch.cuda.is_available()
    state = PartialState(cpu=not on_cuda)
    machine = {
        "processes": state.num_processes,
        "device": torch.cuda.get_device_name() if on_cuda else platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
    if sharded:
        machine["sharded"] = True
    try:
        yield TrainingProcess(state.is_main_process, sharded, machine, state)
    finally:
        if state.num_processes > 1:
            state.destroy_process_group()
