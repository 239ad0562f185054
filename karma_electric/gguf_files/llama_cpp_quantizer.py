"""llama.cpp's own quantiser of whole files, in the package cyllama: what ours is held against."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cyllama.llama import llama_cpp

from karma_electric.errors import InputError, SetupError
from karma_electric.gguf_files.native_output import captured_native_output
from karma_electric.gguf_files.quantized_writer import FILE_TYPES
from karma_electric.gguf_files.reader import read_header
from karma_electric.integrity import atomic_file

_UNQUANTIZED_TYPES: Final = ("F16", "BF16", "F32")


def quantize_gguf(source: Path, output: Path, gguf_type: str, threads: int | None) -> None:
    """Quantise the F16, BF16 or F32 file `source` into `output`, atomically; `threads` None takes every core.

    The bytes do not depend on the number of threads. What llama.cpp prints is caught. Raises IntegrityError for a
    source that is no good GGUF file, InputError for an unknown type or a source that is quantised already, SetupError
    with the end of the log for a failure.
    """
    if gguf_type not in FILE_TYPES:
        raise InputError(f"quantize: the type {gguf_type!r} is unknown, expected one of {', '.join(FILE_TYPES)}")
    for tensor in read_header(source).tensors:  # the native reader is given nothing that ours refuses
        if tensor.type not in _UNQUANTIZED_TYPES:
            raise InputError(f"{source}: {tensor.name} is of the type {tensor.type}, expected F16, BF16 or F32")
    parameters = llama_cpp.LlamaModelQuantizeParams()
    parameters.ftype = FILE_TYPES[gguf_type]
    parameters.nthread = threads or len(os.sched_getaffinity(0))
    with atomic_file(output) as temporary, captured_native_output() as printed:
        try:
            llama_cpp.model_quantize(str(source), str(temporary), parameters)
        except RuntimeError as error:
            raise SetupError(
                f"{output}: quantising to {gguf_type} failed ({printed.tail()}); is the disk full, or memory short?"
            ) from error
