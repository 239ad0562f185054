"""How far the stored values of a GGUF file are from the model that it was made from."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.errors import IntegrityError
from karma_electric.gguf_files.model_tensors import ModelTensors
from karma_electric.gguf_files.planned_tensors import PlannedTensor, rotate_pairs
from karma_electric.gguf_files.reader import TensorInfo
from karma_electric.gguf_files.stored_weights import StoredWeights

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


def check_tensors(source: ModelTensors, plan: list[PlannedTensor], stored: StoredWeights) -> float:
    """The largest relative error of a tensor in `stored` against the model, rounded to F16 where it is a matrix.

    Raises IntegrityError naming the tensor for one beyond the bound of its type, or of a type that no recipe makes.
    """
    worst = 0.0
    for tensor in plan:
        info = stored.info[tensor.name]
        if info.type not in MAX_TENSOR_ERROR:
            raise IntegrityError(
                f"{stored.path}: tensor {info.name} is of the type {info.type}, which no type of the recipe uses; "
                "quantise again"
            )
        rows = _sampled_rows(info)
        error = _relative(stored.read_rows(tensor.name, rows), _original_rows(source, tensor, rows))
        if not error <= MAX_TENSOR_ERROR[info.type]:  # not: NaN is beyond every bound
            raise IntegrityError(
                f"{stored.path}: tensor {info.name} ({info.type}) has a relative error of {error:.4g} against the "
                f"model, expected at most {MAX_TENSOR_ERROR[info.type]:g}; quantise again"
            )
        worst = max(worst, error)
    return worst


def _original_rows(source: ModelTensors, tensor: PlannedTensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """What the rows of the file were made from: (rows, row length)."""
    values = source.load(tensor.source)  # mapped: only the rows that are asked for are read
    if not tensor.is_matrix:
        return values.to(torch.float32).numpy()[None]
    wanted = torch.from_numpy(rows)
    if tensor.rotated_heads is not None:
        wanted = rotate_pairs(torch.arange(tensor.shape[0]), tensor.rotated_heads)[wanted]
    original: NDArray[np.float32] = values[wanted].to(torch.float16).to(torch.float32).numpy()
    return original


def _sampled_rows(tensor: TensorInfo) -> NDArray[np.int64]:
    count = int(np.prod(tensor.shape[1:]))
    return np.unique(np.linspace(0, count - 1, num=min(count, MAX_ROWS)).astype(np.int64))


def _relative(found: NDArray[np.float32], original: NDArray[np.float32]) -> float:
    norm = float(np.linalg.norm(original.astype(np.float64)))
    difference = float(np.linalg.norm(found.astype(np.float64) - original))
    return difference / norm if norm else (0.0 if difference == 0.0 else float("inf"))
