"""What extract-axis leaves behind is checked again before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from karma_electric.axis.measurements import read_axis, read_projections
from karma_electric.errors import IntegrityError
from karma_electric.safetensors_files import open_safetensors, save_safetensors
from tests.axis.conftest import Measured


def _rewrite(source: Path, target: Path, changes: dict[str, torch.Tensor | None], karma: str | None = None) -> Path:
    """A copy with tensors replaced, added, or (None) left out."""
    file = open_safetensors(source)
    tensors = {name: file.load(name) for name in file.tensors}
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_safetensors(target, tensors, {"karma": karma} if karma else file.metadata)
    return target


@pytest.mark.parametrize(
    ("changes", "karma", "fault"),
    [
        ({"axis": None}, None, "'axis': found none"),
        ({"more": torch.ones(2)}, None, "'more': found F32 of 1 dimensions, expected none"),
        ({"axis": torch.ones(4, 256, dtype=torch.float16)}, None, "found F16"),
        ({"axis": torch.ones(4)}, None, "found F32 of 1 dimensions"),
        ({"axis": torch.full((4, 256), float("nan"))}, None, "not finite"),
        ({"axis": torch.ones(3, 256)}, None, "4 standard errors"),
        ({}, "[]", "metadata karma"),
        ({}, "{", "metadata karma"),
    ],
)
def test_a_faulty_axis_file_is_refused(
    measured: Measured, tmp_path: Path, changes: dict[str, torch.Tensor | None], karma: str | None, fault: str
) -> None:
    with pytest.raises(IntegrityError, match=fault):
        read_axis(_rewrite(measured.axis, tmp_path / "axis.safetensors", changes, karma))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"persona.fit": None}, "'persona.fit': found none"),
        ({"persona.fit": torch.ones(3, 4)}, r"shape \(3, 4\)"),
        ({"persona.fit": torch.ones(24, 5)}, r"shape \(24, 5\), expected \(24, 4\)"),
        ({"persona.fit": torch.full((24, 4), float("inf"))}, "not finite"),
        ({"persona.fit.answer": torch.full((24,), 2, dtype=torch.int32)}, "outside 0 to 1"),
        ({"persona.fit.answer": torch.full((24,), -1, dtype=torch.int32)}, "outside 0 to 1"),
        ({"persona.fit.answer": torch.zeros(24)}, "found F32"),
    ],
)
def test_faulty_projections_are_refused(
    measured: Measured, tmp_path: Path, changes: dict[str, torch.Tensor | None], fault: str
) -> None:
    path = _rewrite(measured.projections, tmp_path / "projections.safetensors", changes)
    with pytest.raises(IntegrityError, match=fault):
        read_projections(path, measured.axis, 4)


def test_projections_of_another_axis_are_refused(measured: Measured, tmp_path: Path) -> None:
    axis = tmp_path / "axis.safetensors"
    shutil.copyfile(measured.axis, axis)
    read_projections(measured.projections, axis, 4)
    data = bytearray(axis.read_bytes())
    data[-1] ^= 1
    axis.write_bytes(data)
    with pytest.raises(IntegrityError, match="is another; extract again"):
        read_projections(measured.projections, axis, 4)
