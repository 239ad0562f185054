"""Whether a recipe fits a machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from karma_electric.fit.base_config import base_config
from karma_electric.fit.machine import Machine
from karma_electric.fit.needs import Need, stage_needs
from karma_electric.fit.proposal import proposed_budget
from karma_electric.fit.training_set import TrainingSet, longest_possible_set, measured_set
from karma_electric.recipe import Recipe


@dataclass(frozen=True, slots=True)
class FitReport:
    """What was found. `faults` holds a line for each thing that does not fit; none means that the recipe does."""

    machine: Machine
    needs: tuple[Need, ...]
    disk_bytes: int  # of all outputs, with DVC's copies of them
    tokens_per_microbatch: int
    proposed_tokens_per_microbatch: int | None
    sets_are_measured: bool
    faults: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: bytes and seconds as numbers."""
        return {**asdict(self), "fits": not self.faults}


def judge_fit(recipe: Recipe, machine: Machine, *, base: Path, sets: Path, cache: Path) -> FitReport:
    """Compare what every stage needs with `machine`.

    `base` is the folder that the stage base makes, `sets` that of the exported sets, `cache` DVC's. A set that is not
    exported yet, or whose tokenizer is not there, counts with the longest sequences that the recipe allows. Outputs
    that are there already count again, because DVC keeps the old ones.

    Raises InputError for a base whose configuration is not on this machine.
    """
    config = base_config(recipe.base, base)
    trained = [recipe.interpolate.from_, recipe.interpolate.to]
    found = [_set(name, sets / f"{name}.jsonl", base, recipe) for name in dict.fromkeys(trained)]
    needs = tuple(stage_needs(recipe, config, found, machine))
    disk = sum(need.disk_bytes * _copies(need, sets, cache) for need in needs)
    proposed = proposed_budget(config, recipe.train, found, machine)
    return FitReport(
        machine=machine,
        needs=needs,
        disk_bytes=disk,
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
        proposed_tokens_per_microbatch=proposed,
        sets_are_measured=all(each.is_measured for each in found),
        faults=tuple(_faults(needs, disk, machine, proposed)),
    )


def _set(name: str, path: Path, base: Path, recipe: Recipe) -> TrainingSet:
    if path.is_file() and (base / "tokenizer.json").is_file():
        return measured_set(name, path, base, recipe.train)
    return longest_possible_set(name, recipe.train)


def _copies(need: Need, sets: Path, cache: Path) -> int:
    """Of an output: DVC links its cache where it can, and base and merged are in no cache."""
    if need.stage in ("base", "merge"):
        return 1
    return 1 if _device(cache) == _device(sets) else 2


def _device(path: Path) -> int:
    """The file system that `path` is on, or will be."""
    while not path.exists() and path != path.parent:
        path = path.resolve().parent
    return path.stat().st_dev


def _faults(needs: tuple[Need, ...], disk: int, machine: Machine, proposed: int | None) -> list[str]:
    gpu = min((each.memory_bytes for each in machine.gpus), default=0)
    faults = []
    for need in needs:
        advice = "take a larger machine"
        if need.stage.startswith("train@"):
            advice = "raise train.recomputed_share"
            if proposed is not None:
                advice = f"set train.tokens_per_microbatch to {proposed}"
        if need.gpu_bytes > gpu:
            faults.append(f"{need.stage}: {_gb(need.gpu_bytes)} of GPU memory, there are {_gb(gpu)}; {advice}")
        if need.host_bytes > machine.memory_bytes:
            faults.append(f"{need.stage}: {_gb(need.host_bytes)} of memory, {_gb(machine.memory_bytes)} free; {advice}")
    if disk > machine.disk_bytes:
        faults.append(f"all outputs: {_gb(disk)} of disk, {_gb(machine.disk_bytes)} free; make room")
    return faults


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
