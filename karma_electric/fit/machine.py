"""What this machine has: cores, memory, room on the disk, and GPUs."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as PyTorch sees it."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory is what is free for a new process now, disk what is free where the project lies."""

    cores: int
    memory_bytes: int
    disk_bytes: int
    gpus: tuple[Gpu, ...]


def this_machine(project: Path) -> Machine:
    """The machine that we are on, with the disk of the folder `project`."""
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=_available_memory(),
        disk_bytes=shutil.disk_usage(project).free,
        gpus=_gpus(),
    )


def _available_memory() -> int:
    """What the kernel says can be had without swapping, and the cgroup allows."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return available


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return tuple(Gpu(each.name, each.total_memory) for each in found)
