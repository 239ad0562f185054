"""A Hugging Face folder of the Llama architecture as one quantised GGUF file, in one pass over its weights.

No F16 file is made on the way, but every value is rounded to F16 first: the file is byte for byte the one that
llama.cpp's quantiser makes of an F16 file of the same model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.gguf_files.llama_config import LlamaConfig, read_llama_config
from karma_electric.gguf_files.model_metadata import add_metadata
from karma_electric.gguf_files.model_tensors import ModelTensors
from karma_electric.gguf_files.native_quantizer import load_row_quantizer, row_bytes
from karma_electric.gguf_files.planned_tensors import (
    PlannedTensor,
    check_finite,
    check_source,
    plan_tensors,
    rotate_pairs,
)
from karma_electric.gguf_files.reader import DEFAULT_ALIGNMENT
from karma_electric.gguf_files.type_mix import stored_type
from karma_electric.gguf_files.vocabulary import read_vocabulary
from karma_electric.integrity import atomic_file
from karma_electric.torch_threads import torch_threads

# enum llama_ftype of llama.h
FILE_TYPES: Final[dict[str, int]] = {"Q8_0": 7, "Q5_K_M": 17, "Q4_K_M": 15, "Q6_K": 18}
_ROPE_NAME: Final = "rope_freqs.weight"
_CHUNK_VALUES: Final = 1 << 20  # that a thread has in memory, in BF16, F16, F32 and quantised: 10 MB


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor's place in the file: `offset` is counted from the start of the data."""

    tensor: PlannedTensor
    type: str
    row_bytes: int
    offset: int


def write_quantized_gguf(
    model_folder: Path, output: Path, *, gguf_type: str, name: str, threads: int | None = None
) -> None:
    """Quantise the Llama model in `model_folder` to `gguf_type` (a key of FILE_TYPES) into `output`, atomically.

    The weights are read once, in pieces of some megabytes for each of `threads` (None: every core that this process may
    use), and the file is written once. The same folder gives the same bytes, however many threads there are.

    Raises InputError for another architecture, a tokenizer that llama.cpp cannot reproduce, tensors that are missing,
    unknown or of the wrong shape, and values that are not finite in F16; SetupError for a library that cannot quantise.
    """
    config = read_llama_config(model_folder)
    vocabulary = read_vocabulary(model_folder, config.vocab_size)
    source = ModelTensors(model_folder)
    plan = list(plan_tensors(config))
    check_source(source, plan, config)
    table = list(_table(plan, gguf_type, config))
    with atomic_file(output) as temporary:
        writer = gguf.GGUFWriter(temporary, arch="llama")
        try:
            file_type = FILE_TYPES[gguf_type]
            add_metadata(writer, model_folder, config, vocabulary, name=name, file_type=file_type, is_quantized=True)
            for entry in table:
                _add_row_of_table(writer, entry)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        _write_data(temporary, source, table, config.rope_factors, threads or len(os.sched_getaffinity(0)))


def _table(plan: list[PlannedTensor], gguf_type: str, config: LlamaConfig) -> Iterator[_Entry]:
    """Every tensor in the order of llama.cpp's loader: those outside of blocks, then block by block, each by name."""
    if config.rope_factors is not None:
        plan = [*plan, PlannedTensor(_ROPE_NAME, "", config.rope_factors.shape)]
    offset = 0
    for tensor in sorted(plan, key=lambda tensor: (_block(tensor.name), tensor.name)):
        length = tensor.shape[-1]
        kind = stored_type(gguf_type, tensor.name, length, config) if tensor.is_matrix else "F32"
        entry = _Entry(tensor, kind, row_bytes(kind, length), offset)
        yield entry
        offset += _padded(_rows(entry) * entry.row_bytes)


def _block(name: str) -> int:
    return int(name.split(".")[1]) if name.startswith("blk.") else -1


def _rows(entry: _Entry) -> int:
    return entry.tensor.shape[0] if entry.tensor.is_matrix else 1


def _padded(size: int) -> int:
    return size + -size % DEFAULT_ALIGNMENT


def _add_row_of_table(writer: gguf.GGUFWriter, entry: _Entry) -> None:
    shape = (*entry.tensor.shape[:-1], entry.row_bytes)
    kind = gguf.GGMLQuantizationType[entry.type]
    writer.add_tensor_info(entry.tensor.name, shape, np.dtype(np.uint8), _rows(entry) * entry.row_bytes, raw_dtype=kind)


def _write_data(
    path: Path, source: ModelTensors, table: list[_Entry], rope_factors: NDArray[np.float32] | None, threads: int
) -> None:
    """Fill the file behind its header; between tensors it stays zero."""
    start = _padded(path.stat().st_size)
    last = table[-1]
    with path.open("r+b", buffering=0) as stream, ThreadPoolExecutor(threads) as pool, torch_threads(1):
        stream.truncate(start + last.offset + _padded(_rows(last) * last.row_bytes))

        def write(entry: _Entry, rows: slice) -> None:
            stored = rope_factors if entry.tensor.name == _ROPE_NAME else _stored_rows(source, entry, rows)
            assert stored is not None  # noqa: S101  the table has the factors only where there are some
            _write_at(stream.fileno(), stored, start + entry.offset + rows.start * entry.row_bytes)

        pending = [pool.submit(write, entry, rows) for entry in table for rows in _pieces(entry)]
        try:
            wait(pending, return_when=FIRST_EXCEPTION)
        finally:
            for each in pending:
                each.cancel()
        for each in pending:
            if not each.cancelled():
                each.result()


def _pieces(entry: _Entry) -> Iterator[slice]:
    """Row ranges of about _CHUNK_VALUES values; those of q and k hold whole heads."""
    rows, heads = _rows(entry), entry.tensor.rotated_heads
    together = rows // heads if heads else 1
    step = max(1, _CHUNK_VALUES // (entry.tensor.shape[-1] * together)) * together
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))


def _stored_rows(source: ModelTensors, entry: _Entry, rows: slice) -> NDArray[np.generic]:
    """The rows as they stand in the file."""
    tensor, where = entry.tensor, f"{source.folder}: {entry.tensor.source}"
    if not tensor.is_matrix:
        values = source.load_rows(tensor.source, slice(0, tensor.shape[0]))
        vector = values.to(torch.float32)
        check_finite(vector, values, where, "F32")
        return np.asarray(vector.numpy())
    values = source.load_rows(tensor.source, rows)
    if tensor.rotated_heads is not None:
        head_size = tensor.shape[0] // tensor.rotated_heads
        values = rotate_pairs(values, len(values) // head_size)
    half = values.to(torch.float16)
    check_finite(half, values, where, "F16")
    if entry.type == "F16":
        return np.asarray(half.contiguous().numpy())
    return load_row_quantizer()(half.to(torch.float32).contiguous().numpy(), entry.type)


def _write_at(descriptor: int, stored: NDArray[np.generic], offset: int) -> None:
    left = stored.reshape(-1).view(np.uint8).data
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written
