"""What native code prints, caught at the file descriptors, because it passes Python's sys.stdout by."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO


class NativeOutput:
    """The text that the block wrote to the process's stdout and stderr; to be asked within the block."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def tail(self, most_bytes: int = 2000) -> str:
        """The end of the text, on one line."""
        _flush()
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(max(0, size - most_bytes))
        lines = self._file.read().decode("utf-8", "replace").splitlines()
        return " | ".join(line.strip() for line in lines if line.strip())


@contextlib.contextmanager
def captured_native_output() -> Iterator[NativeOutput]:
    """Send file descriptors 1 and 2 to a temporary file while the block runs. It holds for every thread."""
    with tempfile.TemporaryFile() as file:
        _flush()
        saved = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            for descriptor in (1, 2):
                os.dup2(file.fileno(), descriptor)
            yield NativeOutput(file)
        finally:
            _flush()
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)


def _flush() -> None:
    """Empty the buffers of C and of Python, so that text lands where the descriptors point now."""
    ctypes.CDLL(None).fflush(None)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or replaced by something else
            stream.flush()
