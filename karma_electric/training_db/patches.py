"""Patches: rows that add, replace or retire examples of the set that they are layered on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from karma_electric.canonical import read_json_lines
from karma_electric.conversation import Example, parse_example
from karma_electric.errors import InputError, shown

Operation = Literal["add", "replace", "retire"]


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch row: what it does, to which id, with which example (none for `retire`), and file:line."""

    operation: Operation
    id: str
    example: Example | None
    where: str


def read_patches(folder: Path) -> Iterator[Patch]:
    """Every row of every `.jsonl` file in `folder`, files in the order of their names.

    The folder may also hold README.md and files whose name starts with a dot; anything else is an InputError.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; expected a folder of patch files (it may hold no rows)")
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "README.md":
            continue
        if path.suffix != ".jsonl":
            raise InputError(f"{path}: not a .jsonl file, so its rows would be left out; rename or remove it")
        for number, row in read_json_lines(path):
            yield _parse_patch(row, f"{path}:{number}")


def apply_patches(examples: dict[str, Example], patches: Iterator[Patch]) -> dict[str, Example]:
    """A copy of `examples` (by id) with the patches applied.

    Raises InputError with file and line for an addition of an existing id with other text, a replacement or retirement
    of an unknown id, and two patches of one id that differ.
    """
    result = dict(examples)
    seen: dict[str, Patch] = {}
    for patch in patches:
        if patch.id in seen:
            earlier = seen[patch.id]
            if (earlier.operation, earlier.example) != (patch.operation, patch.example):
                raise InputError(
                    f"{patch.where}: {shown(patch.id)} is patched differently in {earlier.where}; keep one"
                )
            continue
        seen[patch.id] = patch
        _apply(result, patch)
    return result


def _apply(examples: dict[str, Example], patch: Patch) -> None:
    known = examples.get(patch.id)
    if patch.operation == "add":
        if known is not None and known != patch.example:
            raise InputError(f"{patch.where}: {shown(patch.id)} is there already with other text; use op replace")
    elif known is None:
        raise InputError(
            f"{patch.where}: op {patch.operation} of {shown(patch.id)}, which the set does not hold; correct it"
        )
    if patch.example is None:
        del examples[patch.id]
    else:
        examples[patch.id] = patch.example


def _parse_patch(row: dict[str, Any], where: str) -> Patch:
    operation = row.pop("op", "add")
    if operation not in get_args(Operation):
        raise InputError(f"{where}: op is {shown(operation)}, expected one of {', '.join(get_args(Operation))}")
    if operation != "retire":
        example = parse_example(row, where)
        return Patch(cast(Operation, operation), example.id, example, where)
    if set(row) - {"id", "reason"} or not isinstance(row.get("id"), str) or not row["id"]:
        raise InputError(f"{where}: op retire takes id and reason, found {shown(', '.join(row))}")
    return Patch("retire", row["id"], None, where)
