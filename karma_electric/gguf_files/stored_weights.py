"""The weights that a GGUF file of a Llama holds, under their Hugging Face names."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import quants
from numpy.typing import NDArray

from karma_electric.errors import IntegrityError
from karma_electric.gguf_files.planned_tensors import PlannedTensor, restore_pairs
from karma_electric.gguf_files.reader import GgufHeader, TensorInfo


class StoredWeights:
    """The tensors of the file `path`, which must be those of `plan`, widened to float32 by the gguf package.

    Raises IntegrityError naming the first tensor that is missing, not planned, or of another shape.
    """

    def __init__(self, path: Path, header: GgufHeader, plan: list[PlannedTensor]) -> None:
        self.path, self.header = path, header
        self.info = {tensor.name: tensor for tensor in header.tensors}
        self._planned = {tensor.source: tensor for tensor in plan}
        shapes = {tensor.name: tensor.shape[::-1] for tensor in plan}
        extra = {name for name in self.info if name not in shapes and name != "rope_freqs.weight"}
        for name in sorted(shapes.keys() | extra):
            found = self.info[name].shape if name in self.info else None
            if found != shapes.get(name):
                raise IntegrityError(f"{path}: tensor {name} has the shape {found}, the model has {shapes.get(name)}")

    def load(self, source: str) -> torch.Tensor:
        """The whole tensor `source` in the order of Hugging Face, float32."""
        return self._rows(self._planned[source], slice(None))

    def load_rows(self, source: str, rows: slice) -> torch.Tensor:
        """Rows start:stop of the matrix `source`, none of q or k, float32."""
        return self._rows(self._planned[source], rows)

    def read_rows(self, name: str, rows: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """The values of some rows of the tensor `name`, in the order of the file: (rows, row length)."""
        return read_rows(self.path, self.header, self.info[name], rows)

    def _rows(self, planned: PlannedTensor, rows: slice) -> torch.Tensor:
        values = torch.from_numpy(np.require(self.read_rows(planned.name, rows), requirements=["C", "W"]))
        if not planned.is_matrix:
            return values[0]
        return values if planned.rotated_heads is None else restore_pairs(values, planned.rotated_heads)


def read_rows(
    path: Path, header: GgufHeader, tensor: TensorInfo, rows: slice | NDArray[np.int64]
) -> NDArray[np.float32]:
    """The values of some rows of a tensor: (rows, row length)."""
    count = int(np.prod(tensor.shape[1:]))
    raw = np.memmap(path, np.uint8, "r", header.data_offset + tensor.offset, (count, tensor.size_bytes // count))
    values: NDArray[np.float32] = quants.dequantize(np.asarray(raw[rows]), gguf.GGMLQuantizationType[tensor.type])
    return values
