"""What `dvc.yaml` says, read without DVC: which files must be there before the first stage runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from karma_electric.errors import InputError, shown
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
    entries = read_yaml(graph).get("stages")
    if not isinstance(entries, dict):
        raise InputError(f"{graph}: stages is missing or no mapping; restore it with `git checkout -- {graph}`")
    stages: list[Stage] = []
    for name, entry in entries.items():
        where = f"{graph}: stages.{name}"
        body = _mapping(entry, where)
        if "foreach" not in body:
            stages.append(_stage(name, body, recipe, graph))
            continue
        for key, item in _items(_filled(body["foreach"], recipe, graph, name), where):
            do = _mapping(body.get("do"), f"{where}.do")
            stages.append(_stage(f"{name}@{key}", do, {**recipe, "key": key, "item": item}, graph))
    return stages


def read_artifacts(graph: Path, recipe: dict[str, Any]) -> dict[str, Path]:
    """Name -> path of each artifact that the `dvc.yaml` at `graph` names, with `${...}` filled in from the recipe."""
    entries = read_yaml(graph).get("artifacts", {})
    where = f"{graph}: artifacts"
    bodies = {name: _mapping(entry, f"{where}.{name}") for name, entry in _mapping(entries, where).items()}
    return {name: Path(str(_filled(body.get("path"), recipe, graph, name))) for name, body in bodies.items()}


def check_inputs_exist(stages: list[Stage], named_by: Mapping[str, str]) -> None:
    """Raises InputError for a dependency, relative to the folder we are in, that no stage makes and is missing.

    `named_by` (path -> file and key) says where the recipe names a path.
    """
    outputs = [PurePosixPath(output) for stage in stages for output in stage.outputs]
    for stage in stages:
        for dependency in stage.dependencies:
            path = PurePosixPath(dependency)
            made = any(path == out or out in path.parents or path in out.parents for out in outputs)
            if made or Path(dependency).exists():
                continue
            if dependency in named_by:
                raise InputError(
                    f"{named_by[dependency]}: found {dependency!r}, a file that is missing and that no stage makes; "
                    "correct the path or restore the file"
                )
            raise InputError(
                f"{dependency}: missing, but the stage {stage.name} needs it; restore it with "
                f"`git checkout -- {dependency}`, or correct the recipe"
            )


def _stage(name: str, entry: dict[str, Any], values: dict[str, Any], graph: Path) -> Stage:
    where = f"{graph}: stages.{name}"
    dependencies = _paths(entry, "deps", where)
    outputs = [path for kind in ("outs", "metrics", "plots") for path in _paths(entry, kind, where)]
    return Stage(
        name=name,
        dependencies=tuple(str(_filled(path, values, graph, name)) for path in dependencies),
        outputs=tuple(str(_filled(path, values, graph, name)) for path in outputs),
    )


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {shown(value)}, expected a mapping with cmd, deps and outs")
    return value


def _paths(entry: dict[str, Any], kind: str, where: str) -> list[str]:
    """The paths of a list whose items are `path` or `path: settings`."""
    items = entry.get(kind, [])
    if not isinstance(items, list):
        raise InputError(f"{where}.{kind}: found {shown(items)}, expected a list of paths")
    paths: list[str] = []
    for item in items:
        path = next(iter(item), None) if isinstance(item, dict) else item
        if not isinstance(path, str):
            raise InputError(f"{where}.{kind}: found {shown(item)}, expected a path")
        paths.append(path)
    return paths


def _items(value: object, where: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((str(item), item) for item in value)
    else:
        raise InputError(f"{where}.foreach: found {shown(value)}, expected a list or a mapping")


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


def read_lock(text: str, where: str) -> dict[str, dict[str, str]]:
    """Stage -> output path -> hash, from the text of a `dvc.lock`. Raises InputError, starting with `where`."""
    try:
        lock = yaml.safe_load(text) or {}
        return {
            name: {output["path"]: output["md5"] for output in stage.get("outs", [])}
            for name, stage in lock.get("stages", {}).items()
        }
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where}: not a lock file of DVC; restore it with `git checkout -- dvc.lock`, or build with `dvc repro`"
        ) from error


def stages_that_differ(first: dict[str, dict[str, str]], second: dict[str, dict[str, str]]) -> list[str]:
    """The stages of `second` whose outputs are not those of `first`, in the order of `second`."""
    return [name for name, outputs in second.items() if first.get(name) != outputs]
