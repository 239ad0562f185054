"""Quantised GGUF files: the stage `quantize`."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from cyllama.llama import llama_cpp

from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.gguf_files.check import CheckReport, check_gguf
from karma_electric.gguf_files.native_output import captured_native_output
from karma_electric.gguf_files.params import GgufType
from karma_electric.gguf_files.reader import read_header
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import atomic_file, verify_manifest

# enum llama_ftype of llama.h; K-quants keep some tensors at more bits, and rows that are no multiple of 256 fall back
# to Q8_0, Q5_1 or Q5_0.
FILE_TYPES: Final[dict[str, int]] = {"Q8_0": 7, "Q5_K_M": 17, "Q4_K_M": 15, "Q6_K": 18}
UNQUANTIZED_TYPES: Final = ("F16", "BF16", "F32")

_logger = logging.getLogger(__name__)


def make_gguf(
    model_folder: Path,
    output: Path,
    *,
    gguf_type: GgufType,
    name: str,
    threads: int | None = None,
    report: Callable[[str], None] | None = None,
) -> CheckReport:
    """Make the GGUF file `output` of the model in `model_folder`, check it, and only then give it its name.

    The folder is compared with its manifest, written as F16, quantised to `gguf_type`, and the file is compared with
    PyTorch, the F16 file and the Hugging Face tokenizer (see check.py). `name` becomes general.name. The disk needs
    room for the F16 file beside `output` while it runs. `threads` None takes every core that this process may use.

    Raises IntegrityError for a folder that is not as its manifest says, or a file that fails the check; InputError for
    a model that cannot be written (see writer.py); SetupError when the quantiser fails.
    """
    say = report or _logger.info
    say(f"comparing {model_folder.name} with its manifest")
    verify_manifest(model_folder)
    with atomic_file(output) as temporary, _scratch_file(output, gguf_type, temporary) as f16_file:
        say("writing F16")
        write_gguf(model_folder, f16_file, gguf_type="F16", name=name)
        if f16_file != temporary:
            say(f"quantising to {gguf_type}")
            quantize_gguf(f16_file, temporary, gguf_type, threads)
        say(f"checking {gguf_type} against PyTorch and the tokenizer")
        with _errors_about(output, temporary, f16_file):
            return check_gguf(model_folder, f16_file, temporary, gguf_type, threads)


def quantize_gguf(source: Path, output: Path, gguf_type: str, threads: int | None) -> None:
    """Quantise the F16, BF16 or F32 file `source` into `output`, atomically; `threads` None takes every core.

    The bytes do not depend on the number of threads. What llama.cpp prints is caught. Raises IntegrityError for a
    source that is no good GGUF file, InputError for an unknown type or a source that is quantised already, SetupError
    with the end of the log for a failure.
    """
    if gguf_type not in FILE_TYPES:
        raise InputError(f"quantize: the type {gguf_type!r} is unknown, expected one of {', '.join(FILE_TYPES)}")
    for tensor in read_header(source).tensors:  # the native reader is given nothing that ours refuses
        if tensor.type not in UNQUANTIZED_TYPES:
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


@contextlib.contextmanager
def _errors_about(output: Path, *temporary: Path) -> Iterator[None]:
    """An error about a temporary file names the file that it was to become."""
    try:
        yield
    except IntegrityError as error:
        text = str(error)
        for path in temporary:
            text = text.replace(str(path), str(output)).replace(path.name, output.name)
        raise IntegrityError(text) from error


@contextlib.contextmanager
def _scratch_file(output: Path, gguf_type: str, final: Path) -> Iterator[Path]:
    """Where the F16 file goes: a sibling that is removed afterwards, or `final` when F16 is what was asked for."""
    if gguf_type == "F16":
        yield final
        return
    handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".f16.partial", dir=output.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
