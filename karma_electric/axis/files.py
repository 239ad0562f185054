"""The axis GGUF: what a cap is installed from.

GGUF version 3 with tensors `direction.<layer>`, one-dimensional F32 of the hidden size, layer the 0-based index of a
decoder block and never 0, and for each a float32 key `acap.threshold.<layer>`, the signed ceiling tau. Directions are
stored with their length and are normalised here. Keys `karma.*` say where the file is from; files of others lack them,
and old ones lack thresholds too: karma_electric/axis/loading.py takes those, with a threshold beside them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap, unit
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.reader import GgufHeader, TensorInfo, read_header
from karma_electric.integrity import sha256_bytes

MAX_AXIS_BYTES: Final = 256 * 1024 * 1024
MAX_LAYER: Final = 4095
DEFAULT_ALPHA: Final = 1.0  # of a file that names none: the formula has no alpha in llama.cpp's activation-capping

THRESHOLD_PREFIX: Final = "acap.threshold."
IDENTITY_PREFIX: Final = "karma."
ALPHA_KEY: Final = "karma.alpha"

_DIRECTION_NAME = re.compile(r"direction\.([1-9][0-9]{0,3})", re.ASCII)
_LAYER_NUMBER = re.compile(r"[1-9][0-9]{0,3}", re.ASCII)


@dataclass(frozen=True)
class AxisFile:
    """A checked axis file."""

    directions: Mapping[int, NDArray[np.float32]]  # layer -> (hidden_size,), norm 1
    taus: Mapping[int, float]  # layer -> signed ceiling of <h, v>, in activation units
    alpha: float
    identity: Mapping[str, Any]  # the keys karma.*, without that prefix
    sha256: str
    norms: Mapping[int, float]  # layer -> length of the direction as it is stored

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.directions))

    @property
    def hidden_size(self) -> int:
        return len(next(iter(self.directions.values())))

    def cap(self) -> Cap:
        """What to install."""
        return Cap(directions=self.directions, taus=self.taus, alpha=self.alpha)


def load_axis(path: Path, *, need_thresholds: bool = True) -> AxisFile:
    """Read and check the axis GGUF at `path`. Without `need_thresholds` it may have none at all: `taus` is empty then.

    Raises IntegrityError naming the fault: a damaged file, a foreign tensor, a direction that is not one-dimensional
    F32, not finite, zero or of another length than the others, block 0, a threshold that is missing, too many, not
    float32 or not finite. InputError when there is no such file, or one far too large.
    """
    header = read_header(path)
    if header.file_size > MAX_AXIS_BYTES:
        raise InputError(f"{path}: {header.file_size} bytes; expected an axis file of at most {MAX_AXIS_BYTES}")
    if "tokenizer.ggml.model" in header.metadata:
        raise InputError(f"{path}: is a model, expected an axis file with tensors direction.<layer>")
    data = path.read_bytes()
    if header.version != 3 or len(data) != header.file_size:
        raise IntegrityError(f"{path}: GGUF version {header.version} of {len(data)} bytes, expected a whole version 3")
    directions, norms = _directions(path, header, data)
    taus = _taus(path, header)
    if not taus and need_thresholds:
        raise IntegrityError(
            f"{path}: has no key {THRESHOLD_PREFIX}<layer>, expected one for each direction; "
            "give a threshold with it (--acap-threshold T)"
        )
    if taus and (unpaired := sorted(directions.keys() ^ taus.keys())):
        missing = "threshold" if unpaired[0] in directions else "direction"
        raise IntegrityError(f"{path}: layer {unpaired[0]} has no {missing}; every capped layer needs both")
    identity = {
        key.removeprefix(IDENTITY_PREFIX): value
        for key, value in header.metadata.items()
        if key.startswith(IDENTITY_PREFIX)
    }
    return AxisFile(directions, taus, _alpha(path, header), identity, sha256_bytes(data), norms)


def _directions(path: Path, header: GgufHeader, data: bytes) -> tuple[dict[int, NDArray[np.float32]], dict[int, float]]:
    """Directions of norm 1, and the norms that they had."""
    if not header.tensors:
        raise IntegrityError(f"{path}: no tensors, expected direction.<layer>; this is no axis file")
    directions: dict[int, NDArray[np.float32]] = {}
    norms: dict[int, float] = {}
    hidden_size = header.tensors[0].shape[0]
    for tensor in header.tensors:
        layer = _check_tensor(path, tensor, hidden_size)
        start = header.data_offset + tensor.offset
        values = np.frombuffer(data, "<f4", count=hidden_size, offset=start).astype(np.float32)
        try:
            directions[layer] = unit(values)
            norms[layer] = float(np.linalg.norm(values.astype(np.float64)))
        except InputError as error:
            raise IntegrityError(f"{path}: {tensor.name}: {error}") from error
    return dict(sorted(directions.items())), dict(sorted(norms.items()))


def _check_tensor(path: Path, tensor: TensorInfo, hidden_size: int) -> int:
    """The layer of a direction, after its name, type and shape were found right."""
    name = _DIRECTION_NAME.fullmatch(tensor.name)
    if name is None or int(name[1]) > MAX_LAYER:
        raise IntegrityError(
            f"{path}: tensor {tensor.name!r}, expected only direction.<layer> with a layer from 1 to {MAX_LAYER}"
        )
    if tensor.type != "F32" or len(tensor.shape) != 1:
        raise IntegrityError(
            f"{path}: {tensor.name} is {tensor.type} of shape {tensor.shape}, expected one-dimensional F32"
        )
    if tensor.shape[0] != hidden_size:
        raise IntegrityError(
            f"{path}: {tensor.name} has {tensor.shape[0]} values, others {hidden_size}; expected one hidden size"
        )
    return int(name[1])


def _taus(path: Path, header: GgufHeader) -> dict[int, float]:
    taus: dict[int, float] = {}
    for key, value in header.metadata.items():
        if not key.startswith("acap."):
            continue
        number = key.removeprefix(THRESHOLD_PREFIX)
        if not key.startswith(THRESHOLD_PREFIX) or not _LAYER_NUMBER.fullmatch(number):
            raise IntegrityError(f"{path}: key {key!r}, expected {THRESHOLD_PREFIX}<layer> with a layer from 1")
        if header.value_types[key] != "float32" or not math.isfinite(value):
            raise IntegrityError(
                f"{path}: {key} is {value!r} of type {header.value_types[key]}, expected a finite float32"
            )
        taus[int(number)] = value
    return dict(sorted(taus.items()))


def _alpha(path: Path, header: GgufHeader) -> float:
    value = header.metadata.get(ALPHA_KEY, DEFAULT_ALPHA)
    if header.value_types.get(ALPHA_KEY, "float32") != "float32" or not 0 < value <= 1:
        raise IntegrityError(f"{path}: {ALPHA_KEY} is {value!r}, expected a float32 above 0 and up to 1")
    return float(value)
