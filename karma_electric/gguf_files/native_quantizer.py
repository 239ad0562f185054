"""ggml's own quantiser of rows, from the library that also runs the models (engines/llama_cpp_binding.py)."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import c_bool, c_float, c_int, c_int64, c_size_t, c_void_p
from typing import Any, Final

import gguf
import numpy as np
from gguf import quants
from numpy.typing import NDArray

from karma_electric.engines import llama_cpp_binding, llama_cpp_python
from karma_electric.errors import SetupError
from karma_electric.gguf_files.type_codes import TENSOR_TYPES

# name -> (result, arguments)
_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
    # type, source of float32, destination, first value, rows, values in a row, importance matrix or null
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, ctypes.POINTER(c_float))),
    "ggml_validate_row_data": (c_bool, (c_int, c_void_p, c_size_t)),
}
_TYPE_IDS: Final = {name: type_id for type_id, (name, _, _) in TENSOR_TYPES.items()}
_QUANTIZED: Final = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K")

QuantizeRows = Callable[[NDArray[np.float32], str], NDArray[np.uint8]]


def row_bytes(gguf_type: str, row_length: int) -> int:
    """Bytes of a row of `row_length` values, a multiple of the type's block."""
    _, values, size = TENSOR_TYPES[_TYPE_IDS[gguf_type]]
    return row_length // values * size


@functools.cache
def load_row_quantizer() -> QuantizeRows:
    """A function (rows (n, row length) float32, type) -> bytes (n, bytes of a row); it holds no lock of Python's.

    Rows are quantised one by one, so their bytes do not depend on what stands beside them. Raises SetupError where the
    library lacks a function or does not compute what it should: nothing of it is taken on trust.
    """
    quantize = functools.partial(_quantize, _functions())
    library = _functions()
    for name in _QUANTIZED:
        if (found := library.ggml_row_size(_TYPE_IDS[name], 256)) != row_bytes(name, 256):
            raise SetupError(f"llama.cpp: a row of 256 values as {name} has {found} bytes, expected another layout")
    ramp = np.linspace(-1, 1, 512, dtype=np.float32).reshape(2, 256)
    if not np.array_equal(quantize(ramp, "Q8_0"), quants.quantize(ramp, gguf.GGMLQuantizationType.Q8_0)):
        raise SetupError("llama.cpp: its quantiser gives other bytes than the gguf package; run `make install`")
    return quantize


@functools.cache
def _functions() -> Any:
    if llama_cpp_binding.uses_llama_cpp_python():
        return llama_cpp_python.load(_PROTOTYPES, {})
    library = llama_cpp_binding.load_library()
    for name, (result, arguments) in _PROTOTYPES.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise SetupError(f"llama.cpp {llama_cpp_binding.BUILD}: has no function {name}") from error
        function.restype, function.argtypes = result, arguments
    return library


def _quantize(library: Any, values: NDArray[np.float32], gguf_type: str) -> NDArray[np.uint8]:
    if values.ndim != 2 or values.dtype != np.float32 or not values.flags.c_contiguous:
        raise ValueError(f"rows of shape {values.shape}, type {values.dtype}; expected contiguous rows of float32")
    rows, row_length = values.shape
    type_id = _TYPE_IDS[gguf_type]
    stored = np.empty((rows, row_bytes(gguf_type, row_length)), np.uint8)
    written = library.ggml_quantize_chunk(type_id, values.ctypes.data, stored.ctypes.data, 0, rows, row_length, None)
    if written != stored.nbytes or not library.ggml_validate_row_data(type_id, stored.ctypes.data, stored.nbytes):
        raise SetupError(f"llama.cpp: quantising {rows} rows to {gguf_type} gave no valid rows; run `make install`")
    return stored
