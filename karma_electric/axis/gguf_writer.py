"""Writes the axis GGUF that karma_electric/axis/files.py reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from karma_electric.axis.files import ALPHA_KEY, IDENTITY_PREFIX, THRESHOLD_PREFIX, load_axis
from karma_electric.errors import IntegrityError
from karma_electric.integrity import atomic_file

ARCHITECTURE = "controlvector"  # what llama.cpp calls a file of directions


def write_axis_gguf(
    path: Path,
    directions: Mapping[int, NDArray[np.float32]],
    taus: Mapping[int, float],
    *,
    alpha: float,
    model_type: str,
    identity: Mapping[str, str | float],
) -> None:
    """Write directions (hidden_size,), with their length, and one float32 tau for each; atomic.

    Text of `identity` is stored as string, numbers as float32. The file is read back and compared before it takes its
    place; a difference, such as a value that float32 cannot hold, is an IntegrityError.
    """
    with atomic_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURE)
        try:
            writer.add_string(f"{ARCHITECTURE}.model_hint", model_type)
            writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(directions))
            writer.add_float32(ALPHA_KEY, alpha)
            for name, value in sorted(identity.items()):
                add = writer.add_string if isinstance(value, str) else writer.add_float32
                add(f"{IDENTITY_PREFIX}{name}", value)
            for layer in sorted(directions):
                writer.add_float32(f"{THRESHOLD_PREFIX}{layer}", taus[layer])
                writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(directions[layer], np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        _compare(temporary, path, taus, alpha)


def _compare(temporary: Path, path: Path, taus: Mapping[int, float], alpha: float) -> None:
    written = load_axis(temporary)
    expected = {layer: float(np.float32(tau)) for layer, tau in taus.items()}
    if written.taus != expected or written.alpha != float(np.float32(alpha)):
        raise IntegrityError(f"{path}: the axis file does not hold what was written to it")
