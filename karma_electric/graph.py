"""What `dvc.yaml` says, read without DVC: which files must be there before the first stage runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from karma_electric.errors import InputError
from karma_electric.parameters import read_yaml

_TEMPLATE = re.compile(r"\$\{([^}]+)\}")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage after its templates were filled in."""

    name: str
    dependencies: tuple[str, ...]
    outputs: tuple[str, ...]


def read_stages(graph: Path, recipe: dict[str, Any]) -> list[Stage]:
    """Every stage of the `dvc.yaml` at `graph`, with `foreach` unrolled and `${...}` filled in from the recipe."""
    stages: list[Stage] = []
    for name, entry in read_yaml(graph).get("stages", {}).items():
        if "foreach" not in entry:
            stages.append(_stage(name, entry, recipe, graph))
            continue
        for key, item in _items(_filled(entry["foreach"], recipe, graph, name)):
            stages.append(_stage(f"{name}@{key}", entry["do"], {**recipe, "key": key, "item": item}, graph))
    return stages


def check_inputs_exist(stages: list[Stage]) -> None:
    """Raises InputError for a dependency, relative to the folder we are in, that no stage makes and is missing."""
    outputs = [PurePosixPath(output) for stage in stages for output in stage.outputs]
    for stage in stages:
        for dependency in stage.dependencies:
            path = PurePosixPath(dependency)
            made = any(path == out or out in path.parents or path in out.parents for out in outputs)
            if not made and not Path(dependency).exists():
                raise InputError(
                    f"{dependency}: missing, but the stage {stage.name} needs it; restore it with "
                    f"`git checkout -- {dependency}`, or correct the recipe"
                )


def _stage(name: str, entry: dict[str, Any], values: dict[str, Any], graph: Path) -> Stage:
    outputs = [
        path if isinstance(path, str) else next(iter(path))
        for kind in ("outs", "metrics", "plots")
        for path in entry.get(kind, [])
    ]
    return Stage(
        name=name,
        dependencies=tuple(_filled(path, values, graph, name) for path in entry.get("deps", [])),
        outputs=tuple(_filled(path, values, graph, name) for path in outputs),
    )


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    else:
        yield from ((str(item), item) for item in value)


def _filled(value: Any, values: dict[str, Any], graph: Path, stage: str) -> Any:
    if isinstance(value, list):
        return [_filled(item, values, graph, stage) for item in value]
    if not isinstance(value, str):
        return value
    if whole := _TEMPLATE.fullmatch(value):
        return _looked_up(whole[1], values, graph, stage)
    return _TEMPLATE.sub(lambda match: str(_looked_up(match[1], values, graph, stage)), value)


def _looked_up(key: str, values: dict[str, Any], graph: Path, stage: str) -> Any:
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            raise InputError(
                f"{graph}: stage {stage} uses ${{{key}}}, which the recipe lacks; add it or correct the name"
            )
        found = found[part]
    return found


def read_lock(text: str) -> dict[str, dict[str, str]]:
    """Stage -> output path -> hash, from the text of a `dvc.lock`."""
    lock = yaml.safe_load(text) or {}
    return {
        name: {output["path"]: str(output.get("md5", "")) for output in stage.get("outs", [])}
        for name, stage in lock.get("stages", {}).items()
    }


def stages_that_differ(first: dict[str, dict[str, str]], second: dict[str, dict[str, str]]) -> list[str]:
    """The stages of `second` whose outputs are not those of `first`, in the order of `second`."""
    return [name for name, outputs in second.items() if first.get(name) != outputs]
