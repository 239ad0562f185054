"""Whether a file that was made again is the published one: byte by byte, or, on another machine, nearly.

Another CPU or library rounds sums otherwise, so that files differ in last bits, and so does every hash of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np

from karma_electric.errors import IntegrityError
from karma_electric.gguf_files.reader import read_header
from karma_electric.gguf_files.stored_weights import read_rows
from karma_electric.integrity import sha256_file

Result = Literal["equal", "near", "differs"]

ADAPTER_TOLERANCE: Final = 1e-5  # |B A - B' A'| / |B A|; it is computed in float64 and rounded to float32
AXIS_TOLERANCE: Final = 1e-6  # relative, of directions and taus, which are float32
NUMBER_TOLERANCE: Final = 1e-4  # relative, of numbers in text, which have six digits
MEASURED_TOLERANCE: Final = 0.1  # the same, of metrics/quantize: what llama.cpp's arithmetic on this CPU gives
MEASURED_STEP: Final = 0.03  # or so much, absolutely: three of a hundred positions with another likeliest token
# Largest |q - q'| / |q| of a tensor of a GGUF file: a tenth of what its type may be from F16 (see tensor_errors.py).
# Merged weights are rounded to bf16, so a last bit that differs moves a value by a step of its type, here and there.
TENSOR_TOLERANCE: Final[dict[str, float]] = {
    "F32": 1e-6,
    "F16": 1e-3,
    "Q8_0": 1.5e-3,
    "Q6_K": 4.5e-3,
    "Q5_K": 0.01,
    "Q5_1": 0.01,
    "Q5_0": 0.012,
    "Q4_K": 0.02,
}
_ROWS_AT_ONCE = 4096
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def same_bytes(published: Path, made: Path) -> bool:
    """Whether two files are equal."""
    return published.stat().st_size == made.stat().st_size and sha256_file(published) == sha256_file(made)


def text_difference(published: str, made: str, *, relative: float, absolute: float = 0.0) -> float | None:
    """The largest relative difference of two texts' numbers, 0 for equal texts; None where more than numbers differ, or
    one of them by more than `relative` and by more than `absolute`."""
    if _NUMBER.split(published) != _NUMBER.split(made):
        return None
    worst = 0.0
    for first, second in zip(_NUMBER.findall(published), _NUMBER.findall(made), strict=True):
        a, b = float(first), float(second)
        if a == b:
            continue
        difference = abs(a - b) / max(abs(a), abs(b))
        if not (difference <= relative or abs(a - b) <= absolute):
            return None
        worst = max(worst, difference)
    return worst


def translated(data: bytes, hashes: Mapping[str, str]) -> bytes:
    """`data` with the SHA-256 of what was made again (key) replaced by that of what was published (value)."""
    for made, published in hashes.items():
        data = data.replace(made.encode("ascii"), published.encode("ascii"))
    return data


def adapter_difference(published: Path, made: Path) -> float:
    """|B A - B' A'| / |B A| of the worst module of two adapter folders. Raises IntegrityError for other modules."""
    from karma_electric.adapters.algebra import frobenius_norm, weighted_sum
    from karma_electric.adapters.files import read_adapter
    from karma_electric.torch_threads import torch_threads

    first, second = read_adapter(published), read_adapter(made)
    if dict(first.modules) != dict(second.modules):
        raise IntegrityError(f"{published}: has other modules, ranks or shapes than its parents give")
    worst = 0.0
    with torch_threads(1):
        for name in first.modules:
            a, b = first.load(name), second.load(name)
            norm = frobenius_norm(a)
            distance = frobenius_norm(weighted_sum([(1.0, a), (-1.0, b)]))
            worst = max(worst, distance / norm if norm else math.inf if distance else 0.0)
    return worst


def gguf_difference(published: Path, made: Path, hashes: Mapping[str, str]) -> tuple[float, str]:
    """(worst share of the tolerance of a tensor's type or of a number, what it is of); beyond 1 it is not near.

    `hashes` as in `translated`. A file of other keys, texts, tensors, shapes or types is infinitely far.
    """
    first, second = read_header(published), read_header(made)
    if first.metadata.keys() != second.metadata.keys():
        return math.inf, "its keys"
    worst = (0.0, "nothing")
    for key, value in first.metadata.items():
        other = second.metadata[key]
        if isinstance(other, str):
            other = hashes.get(other, other)
        if value == other:
            continue
        if not isinstance(value, float) or not isinstance(other, float):
            return math.inf, key
        worst = max(worst, (abs(value - other) / max(abs(value), abs(other)) / NUMBER_TOLERANCE, key))
    tables = [{tensor.name: (tensor.shape, tensor.type) for tensor in header.tensors} for header in (first, second)]
    if tables[0] != tables[1]:
        return math.inf, "its table of tensors"
    others = {tensor.name: tensor for tensor in second.tensors}
    for tensor in first.tensors:
        squares, norm = 0.0, 0.0
        for start in range(0, count := int(np.prod(tensor.shape[1:])), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, count))
            a = read_rows(published, first, tensor, rows).astype(np.float64)
            b = read_rows(made, second, others[tensor.name], rows)
            squares, norm = squares + float(np.square(a - b).sum()), norm + float(np.square(a).sum())
        error = math.sqrt(squares / norm) if norm else math.inf if squares else 0.0
        share = error / TENSOR_TOLERANCE[tensor.type] if tensor.type in TENSOR_TOLERANCE else math.inf
        worst = max(worst, (share if share == share else math.inf, tensor.name))
    return worst


def torch_axis_difference(published: Path, made: Path) -> float:
    """The largest relative difference of two axis files of PyTorch: of a direction, a tau or the alpha."""
    from karma_electric.axis.torch_files import read_torch_axis

    first, second = read_torch_axis(published), read_torch_axis(made)
    if first.directions.keys() != second.directions.keys() or first.taus.keys() != second.taus.keys():
        return math.inf
    differences = [abs(first.alpha - second.alpha)]
    differences += [abs(tau - second.taus[layer]) / max(abs(tau), 1e-30) for layer, tau in first.taus.items()]
    differences += [
        float(np.linalg.norm(direction - second.directions[layer])) for layer, direction in first.directions.items()
    ]
    return max(differences)
