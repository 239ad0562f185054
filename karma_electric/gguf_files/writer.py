"""A Hugging Face folder of the Llama architecture as one unquantised GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.gguf_files.llama_config import read_llama_config
from karma_electric.gguf_files.model_metadata import add_metadata
from karma_electric.gguf_files.model_tensors import ModelTensors
from karma_electric.gguf_files.planned_tensors import (
    PlannedTensor,
    check_finite,
    check_source,
    plan_tensors,
    rotate_pairs,
)
from karma_electric.gguf_files.vocabulary import read_vocabulary
from karma_electric.integrity import atomic_file

UnquantizedType = Literal["F32", "F16", "BF16"]

_TORCH_TYPES: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FILE_TYPES: Final = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "BF16": gguf.LlamaFileType.MOSTLY_BF16,
}


def write_gguf(model_folder: Path, output: Path, *, gguf_type: UnquantizedType, name: str) -> None:
    """Write the Llama model in `model_folder` to the GGUF file `output`, atomically.

    Matrices are stored as `gguf_type`, norms and RoPE factors as F32; `name` becomes general.name. One tensor at a time
    is in memory. The same folder gives the same bytes.

    Raises InputError for another architecture, a tokenizer that llama.cpp cannot reproduce (see vocabulary.py), tensors
    that are missing, unknown or of the wrong shape, and values that are not finite in `gguf_type`.
    """
    config = read_llama_config(model_folder)
    vocabulary = read_vocabulary(model_folder, config.vocab_size)
    source = ModelTensors(model_folder)
    plan = list(plan_tensors(config))
    check_source(source, plan, config)
    with atomic_file(output) as temporary:
        writer = gguf.GGUFWriter(temporary, arch="llama")
        try:
            file_type = _FILE_TYPES[gguf_type]
            add_metadata(writer, model_folder, config, vocabulary, name=name, file_type=file_type, is_quantized=False)
            _write_tensors(writer, source, plan, gguf_type, config.rope_factors)
        finally:
            writer.close()


def _write_tensors(
    writer: gguf.GGUFWriter,
    source: ModelTensors,
    plan: list[PlannedTensor],
    matrix_type: UnquantizedType,
    rope_factors: NDArray[np.float32] | None,
) -> None:
    for tensor in plan:
        storage, ggml_type = _storage(matrix_type if tensor.is_matrix else "F32")
        size_bytes = int(np.prod(tensor.shape)) * storage.itemsize
        writer.add_tensor_info(tensor.name, tensor.shape, storage, size_bytes, raw_dtype=ggml_type)
    if rope_factors is not None:
        writer.add_tensor_info("rope_freqs.weight", rope_factors.shape, rope_factors.dtype, rope_factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in plan:
        writer.write_tensor_data(_converted(source, tensor, matrix_type if tensor.is_matrix else "F32"))
    if rope_factors is not None:
        writer.write_tensor_data(rope_factors)


def _storage(gguf_type: UnquantizedType) -> tuple[np.dtype[np.generic], gguf.GGMLQuantizationType]:
    """numpy has no bfloat16: its bytes travel as uint16."""
    names = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    return np.dtype(names[gguf_type]), gguf.GGMLQuantizationType[gguf_type]


def _converted(source: ModelTensors, tensor: PlannedTensor, gguf_type: UnquantizedType) -> NDArray[np.generic]:
    values = source.load(tensor.source)
    if tensor.rotated_heads is not None:
        values = rotate_pairs(values, tensor.rotated_heads)
    converted = values.to(_TORCH_TYPES[gguf_type]).contiguous()
    check_finite(converted, values, f"{source.folder}: {tensor.source}", gguf_type)
    array: NDArray[np.generic] = converted.view(torch.uint16 if gguf_type == "BF16" else converted.dtype).numpy()
    return array
