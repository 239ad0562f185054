"""How far the stored values of a quantised GGUF are from the F16 file that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from karma_electric.errors import IntegrityError
from karma_electric.gguf_files.reader import GgufHeader, TensorInfo, read_header

MAX_ROWS: Final = 1024  # of a tensor, evenly spread with first and last; the whole of an 8B model would take minutes

# Largest |q - x| / |x| of a tensor. Rounding to steps of s leaves s / sqrt(12) on average, and the worst blocks set s:
# with 32 values a block, max|x| <= sqrt(32) rms and max - min <= 8 rms; with 16 values (Q6_K), max|x| <= 4 rms. That is
# 0.013 (Q8_0), 0.036 (Q6_K), 0.075 (Q5_1, Q5_K), 0.102 (Q5_0), 0.154 (Q4_K), plus the rounding of the scales.
# Measured on SmolLM2-135M and on normal random weights: half of it or less. A wrong tensor has 1 (zeros) or more.
MAX_TENSOR_ERROR: Final[dict[str, float]] = {
    "F32": 0.0,
    "F16": 0.0,
    "Q8_0": 0.015,
    "Q6_K": 0.045,
    "Q5_K": 0.1,
    "Q5_1": 0.1,
    "Q5_0": 0.12,
    "Q4_K": 0.2,
}


def check_tensors(f16_file: Path, gguf_file: Path) -> float:
    """The largest relative error of a tensor in `gguf_file`. Both files must hold the same names and shapes.

    Raises IntegrityError naming the tensor for one beyond the bound of its type, or of a type that no recipe makes.
    """
    base, header = read_header(f16_file), read_header(gguf_file)
    originals = {tensor.name: tensor for tensor in base.tensors}
    worst = 0.0
    for tensor in header.tensors:
        if tensor.type not in MAX_TENSOR_ERROR:
            raise IntegrityError(
                f"{gguf_file}: tensor {tensor.name} is of the type {tensor.type}, which no type of the recipe uses; "
                "quantise again"
            )
        rows = _sampled_rows(tensor)
        found = read_rows(gguf_file, header, tensor, rows)
        original = read_rows(f16_file, base, originals[tensor.name], rows)
        error = _relative(found, original)
        if not error <= MAX_TENSOR_ERROR[tensor.type]:  # not: NaN is beyond every bound
            raise IntegrityError(
                f"{gguf_file}: tensor {tensor.name} ({tensor.type}) has a relative error of {error:.4g} against F16, "
                f"expected at most {MAX_TENSOR_ERROR[tensor.type]:g}; quantise again"
            )
        worst = max(worst, error)
    return worst


def read_rows(path: Path, header: GgufHeader, tensor: TensorInfo, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """The values of some rows of a tensor: (len(rows), row length)."""
    count = int(np.prod(tensor.shape[1:]))
    raw = np.memmap(path, np.uint8, "r", header.data_offset + tensor.offset, (count, tensor.size_bytes // count))
    values: NDArray[np.float32] = quants.dequantize(np.asarray(raw[rows]), gguf.GGMLQuantizationType[tensor.type])
    return values


def _sampled_rows(tensor: TensorInfo) -> NDArray[np.int64]:
    count = int(np.prod(tensor.shape[1:]))
    return np.unique(np.linspace(0, count - 1, num=min(count, MAX_ROWS)).astype(np.int64))


def _relative(found: NDArray[np.float32], original: NDArray[np.float32]) -> float:
    norm = float(np.linalg.norm(original.astype(np.float64)))
    difference = float(np.linalg.norm(found.astype(np.float64) - original))
    return difference / norm if norm else (0.0 if difference == 0.0 else float("inf"))
