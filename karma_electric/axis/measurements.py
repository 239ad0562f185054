"""The two files that measuring a model leaves behind: the axis, and the projections of answers on it.

axis.safetensors: `axis` F32 (n_layers, hidden_size), generic minus persona; `standard_error` F32 (n_layers,); where the
recipe asks for them, `effect_sizes` F32 (n_layers, 3).
projections.safetensors, for each kind and split: `<kind>.<split>` F32 (tokens, n_layers), the projections <h, v> of the
generated tokens in activation units; `<kind>.<split>.answer` I32 (tokens,), the answer that each token is from.
Both carry one metadata key `karma`, canonical JSON, that says what they were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.axis.params import PromptKind
from karma_electric.axis.prompts import KINDS, SPLITS, Split
from karma_electric.canonical import parse_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import sha256_file
from karma_electric.safetensors_files import SafetensorsFile, karma_metadata, open_safetensors, save_safetensors

MAX_FILE_BYTES = 2 * 1024**3


@dataclass(frozen=True)
class AxisMeasurement:
    """The axis of every layer, and what it was measured on."""

    axis: NDArray[np.float32]  # (n_layers, hidden_size), generic minus persona
    standard_error: NDArray[np.float32]  # (n_layers,) of the mean projection of that difference
    identity: Mapping[str, Any]
    effect_sizes: NDArray[np.float32] | None = None  # (n_layers, 3): Cohen's d, low and high end of its interval

    @property
    def n_layers(self) -> int:
        return int(self.axis.shape[0])


@dataclass(frozen=True)
class AnswerProjections:
    """Generated tokens of one kind and split."""

    values: NDArray[np.float32]  # (tokens, n_layers)
    answers: NDArray[np.int32]  # (tokens,) which answer each token is from, from 0
    n_answers: int  # empty ones included


Projections = Mapping[tuple[PromptKind, Split], AnswerProjections]


def write_axis(path: Path, measured: AxisMeasurement) -> None:
    """Write axis.safetensors; equal measurements give equal bytes."""
    tensors = {
        "axis": torch.from_numpy(measured.axis),
        "standard_error": torch.from_numpy(measured.standard_error),
    }
    if measured.effect_sizes is not None:
        tensors["effect_sizes"] = torch.from_numpy(measured.effect_sizes)
    save_safetensors(path, tensors, karma_metadata(dict(measured.identity)))


def read_axis(path: Path) -> AxisMeasurement:
    """Read and check axis.safetensors. Raises IntegrityError naming the fault."""
    file = _open(path, {"axis": ("F32", 2), "standard_error": ("F32", 1)}, optional={"effect_sizes": ("F32", 2)})
    axis, standard_error = _load(file, "axis"), _load(file, "standard_error")
    if len(axis) != len(standard_error) or not axis.size:
        raise IntegrityError(
            f"{path}: axis of shape {axis.shape}, {len(standard_error)} standard errors; extract again"
        )
    sizes = _load(file, "effect_sizes") if "effect_sizes" in file.tensors else None
    if sizes is not None and sizes.shape != (len(axis), 3):
        raise IntegrityError(f"{path}: effect_sizes of shape {sizes.shape}, expected ({len(axis)}, 3); extract again")
    return AxisMeasurement(axis, standard_error, _identity(file), sizes)


def write_projections(path: Path, projections: Projections, axis: Path, identity: Mapping[str, Any]) -> None:
    """Write projections.safetensors; it is bound to the bytes of the axis file that they were measured with."""
    tensors: dict[str, torch.Tensor] = {}
    for (kind, split), found in projections.items():
        tensors[f"{kind}.{split}"] = torch.from_numpy(found.values)
        tensors[f"{kind}.{split}.answer"] = torch.from_numpy(found.answers)
    n_answers = {f"{kind}.{split}": found.n_answers for (kind, split), found in projections.items()}
    facts = {**identity, "axis_sha256": sha256_file(axis), "n_answers": n_answers}
    save_safetensors(path, tensors, karma_metadata(facts))


def read_projections(path: Path, axis: Path, n_layers: int) -> Projections:
    """Read and check projections.safetensors. Raises IntegrityError, also where they belong to another axis file."""
    pairs = [(kind, split) for kind in KINDS for split in SPLITS]
    expected = {f"{kind}.{split}": ("F32", 2) for kind, split in pairs}
    expected |= {f"{kind}.{split}.answer": ("I32", 1) for kind, split in pairs}
    file = _open(path, expected)
    identity = _identity(file)
    if (found := identity.get("axis_sha256")) != sha256_file(axis):
        raise IntegrityError(f"{path}: was measured with the axis {str(found)[:12]}…, {axis} is another; extract again")
    n_answers = identity.get("n_answers")
    if not isinstance(n_answers, dict):
        raise IntegrityError(f"{path}: n_answers is missing from the metadata; extract again")
    return {
        (kind, split): _one_set(file, f"{kind}.{split}", n_answers.get(f"{kind}.{split}"), n_layers)
        for kind, split in pairs
    }


def _one_set(file: SafetensorsFile, name: str, n_answers: object, n_layers: int) -> AnswerProjections:
    values, answers = _load(file, name), _load(file, f"{name}.answer")
    if type(n_answers) is not int or n_answers < 1:
        raise IntegrityError(f"{file.path}: {name}: n_answers is {n_answers!r}, expected a whole number; extract again")
    if values.shape != (len(answers), n_layers):
        raise IntegrityError(
            f"{file.path}: {name} has the shape {values.shape}, expected ({len(answers)}, {n_layers}); extract again"
        )
    if len(answers) and not (answers.min() >= 0 and answers.max() < n_answers):
        raise IntegrityError(f"{file.path}: {name}.answer is outside 0 to {n_answers - 1}; extract again")
    return AnswerProjections(values, answers, n_answers)


def _open(
    path: Path, expected: Mapping[str, tuple[str, int]], optional: Mapping[str, tuple[str, int]] | None = None
) -> SafetensorsFile:
    """The file, after names, types and numbers of dimensions were found as expected."""
    if path.is_file() and path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{path}: larger than {MAX_FILE_BYTES} bytes; expected what the stage extract-axis writes")
    file = open_safetensors(path)
    found = {name: (entry.dtype, len(entry.shape)) for name, entry in file.tensors.items()}
    expected = {**expected, **{name: form for name, form in (optional or {}).items() if name in found}}
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise IntegrityError(
                f"{path}: tensor {name!r}: found {_form(found.get(name))}, expected {_form(expected.get(name))}; "
                "extract again"
            )
    return file


def _form(form: tuple[str, int] | None) -> str:
    return "none" if form is None else f"{form[0]} of {form[1]} dimensions"


def _load(file: SafetensorsFile, name: str) -> NDArray[Any]:
    array: NDArray[Any] = file.load(name).numpy()
    if not np.isfinite(array).all():
        raise IntegrityError(f"{file.path}: {name} has a value that is not finite; extract again")
    return array


def _identity(file: SafetensorsFile) -> dict[str, Any]:
    where = f"{file.path}: metadata karma"
    try:
        return parse_json_object(file.metadata.get("karma", "").encode("utf-8"), where)
    except InputError as error:
        raise IntegrityError(f"{where}: not the JSON that the stage extract-axis writes ({error})") from error
