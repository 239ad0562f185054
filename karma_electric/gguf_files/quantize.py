"""GGUF files of a model, checked: the stage `quantize`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from karma_electric.errors import IntegrityError
from karma_electric.gguf_files.check import CheckReport, check_gguf
from karma_electric.gguf_files.params import GgufType
from karma_electric.gguf_files.quantized_writer import write_quantized_gguf
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import atomic_file, verify_manifest

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

    The folder is compared with its manifest, its weights are quantised to `gguf_type` in one pass, and the file is
    compared with the weights, with PyTorch and with the Hugging Face tokenizer (see check.py). `name` becomes
    general.name. `threads` None takes every core that this process may use.

    Raises IntegrityError for a folder that is not as its manifest says, or a file that fails the check; InputError for
    a model that cannot be written (see writer.py); SetupError when the quantiser fails.
    """
    say = report or _logger.info
    say(f"comparing {model_folder.name} with its manifest")
    verify_manifest(model_folder)
    with atomic_file(output) as temporary:
        say(f"writing {gguf_type}")
        if gguf_type == "F16":
            write_gguf(model_folder, temporary, gguf_type=gguf_type, name=name)
        else:
            write_quantized_gguf(model_folder, temporary, gguf_type=gguf_type, name=name, threads=threads)
        say(f"checking {gguf_type} against the weights, PyTorch and the tokenizer")
        with _errors_about(output, temporary):
            return check_gguf(model_folder, temporary, gguf_type, threads)


@contextlib.contextmanager
def _errors_about(output: Path, temporary: Path) -> Iterator[None]:
    """An error about the temporary file names the file that it was to become."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(str(error).replace(str(temporary), str(output))) from error
