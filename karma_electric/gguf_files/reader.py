"""A bounded reader of GGUF headers: metadata and the table of tensors, never the tensors themselves.

The format is that of ggml's docs/gguf.md, versions 2 and 3, little-endian. Every count and length is compared with what
is left of the file before anything is read or allocated for it, so a file of n bytes costs time and memory of order n,
and a file that breaks a rule is an IntegrityError that names the byte.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.type_codes import (
    ARRAY_TYPE,
    BOOL_TYPE,
    SCALAR_TYPES,
    STRING_TYPE,
    TENSOR_TYPES,
    value_type_name,
)

MAGIC: Final = b"GGUF"
DEFAULT_ALIGNMENT: Final = 32

# A key of ours: sha256 of the manifest of the folder that a file was made from, so of its exact weights.
SOURCE_KEY: Final = "karma.source_sha256"

MAX_HEADER_BYTES: Final = 128 * 1024 * 1024
MAX_METADATA_ENTRIES: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_ARRAY_LENGTH: Final = 2_000_000
MAX_ARRAY_DEPTH: Final = 2
MAX_KEY_BYTES: Final = 65_535
MAX_STRING_BYTES: Final = 16 * 1024 * 1024
MAX_TENSOR_NAME_BYTES: Final = 63
MAX_DIMENSIONS: Final = 4
MAX_ALIGNMENT: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One row of the table of tensors. `shape` is in GGUF's order: the length of a row stands first."""

    name: str
    shape: tuple[int, ...]
    type: str  # F32, F16, Q8_0, ...
    offset: int  # from the start of the data section, in bytes
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a GGUF file says about itself. Arrays are tuples; `value_types` has the stored type of every key."""

    version: int
    metadata: dict[str, Any]
    value_types: dict[str, str]  # float32, string, array[uint32], ...
    tensors: list[TensorInfo]
    data_offset: int
    file_size: int


def read_header(path: Path) -> GgufHeader:
    """The header of the GGUF file `path`, checked as a whole.

    Refused: anything but little-endian version 2 or 3, truncation, lengths beyond the limits of this module, a key or
    tensor that stands twice, an unknown type, an alignment that is not a power of two, and tensors that lie outside
    the file, off the alignment, or over one another.

    Raises IntegrityError naming the byte; InputError when there is no such regular file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise InputError(f"{path}: not a regular file; expected a GGUF file")
        with path.open("rb") as stream:
            return _HeaderParser(path, stream).parse()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected a GGUF file") from error


class _HeaderParser:
    """A cursor over one open file. `position` is the offset of the next byte."""

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self.path = path
        self.stream = stream
        self.file_size = os.fstat(stream.fileno()).st_size
        self.limit = min(self.file_size, MAX_HEADER_BYTES)
        self.position = 0

    def parse(self) -> GgufHeader:
        version = self._read_version()
        tensor_count = self._read_count("tensors", MAX_TENSORS, least_bytes=8 + 4 + 8 + 4 + 8)
        entry_count = self._read_count("metadata entries", MAX_METADATA_ENTRIES, least_bytes=8 + 4 + 1)
        metadata: dict[str, Any] = {}
        value_types: dict[str, str] = {}
        for _ in range(entry_count):
            start = self.position
            key = self._read_text("a key", MAX_KEY_BYTES)
            if not key or key in metadata:
                raise self._fault(start, f"the key {key!r} is empty or stands twice")
            value_types[key], metadata[key] = self._read_value()
        alignment = self._alignment(metadata, value_types)
        tensors = self._read_tensors(tensor_count)
        data_offset = -(-self.position // alignment) * alignment
        self._check_layout(tensors, data_offset, alignment)
        return GgufHeader(version, metadata, value_types, tensors, data_offset, self.file_size)

    def _read_version(self) -> int:
        magic = self._take(4, "the magic")
        if magic != MAGIC:
            raise self._fault(0, f"found {magic!r}, expected {MAGIC!r}; this is no GGUF file")
        version = int(self._unpack("<I", "the version"))
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = f"big-endian version {swapped}" if swapped in (2, 3) else f"version {version}"
            raise self._fault(4, f"found {kind}, expected little-endian version 2 or 3")
        return version

    def _read_tensors(self, count: int) -> list[TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            start = self.position
            tensor = self._read_tensor()
            if tensor.name in tensors:
                raise self._fault(start, f"the tensor {tensor.name!r} stands twice")
            tensors[tensor.name] = tensor
        return list(tensors.values())

    def _read_tensor(self) -> TensorInfo:
        start = self.position
        name = self._read_text("a tensor's name", MAX_TENSOR_NAME_BYTES)
        dimensions = int(self._unpack("<I", "a number of dimensions"))
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise self._fault(start, f"tensor {name!r} has {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(int(self._unpack("<Q", "a dimension")) for _ in range(dimensions))
        type_id = int(self._unpack("<I", "a tensor's type"))
        offset = int(self._unpack("<Q", "a tensor's offset"))
        if type_id not in TENSOR_TYPES:
            raise self._fault(start, f"tensor {name!r} is of the unknown type {type_id}")
        type_name, block_length, block_bytes = TENSOR_TYPES[type_id]
        if 0 in shape or shape[0] % block_length:
            raise self._fault(
                start, f"tensor {name!r} has the shape {shape}, expected non-zero rows in blocks of {block_length}"
            )
        size_bytes = math.prod(shape) // block_length * block_bytes
        return TensorInfo(name, shape, type_name, offset, size_bytes)

    def _alignment(self, metadata: dict[str, Any], value_types: dict[str, str]) -> int:
        key = "general.alignment"
        alignment = metadata.get(key, DEFAULT_ALIGNMENT)
        if value_types.get(key, "uint32") != "uint32":
            raise self._fault(self.position, f"{key} is of type {value_types[key]}, expected uint32")
        if not 1 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._fault(self.position, f"{key} is {alignment}, expected a power of two up to {MAX_ALIGNMENT}")
        return int(alignment)

    def _check_layout(self, tensors: list[TensorInfo], data_offset: int, alignment: int) -> None:
        end, last = 0, ""
        for tensor in sorted(tensors, key=lambda each: each.offset):
            start = data_offset + tensor.offset
            if tensor.offset % alignment:
                raise self._fault(start, f"tensor {tensor.name!r} does not lie on a multiple of {alignment}")
            if tensor.offset < end:
                raise self._fault(start, f"tensor {tensor.name!r} lies over {last!r}")
            if start + tensor.size_bytes > self.file_size:
                raise self._fault(
                    start,
                    f"tensor {tensor.name!r} ends at byte {start + tensor.size_bytes}, but the file has "
                    f"{self.file_size}; it was cut short",
                )
            end, last = tensor.offset + tensor.size_bytes, tensor.name

    def _read_value(self) -> tuple[str, Any]:
        """(name of the type, value) of one metadata entry."""
        type_id = int(self._unpack("<I", "a value's type"))
        if type_id == ARRAY_TYPE:
            return self._read_array(depth=1)
        return value_type_name(type_id), self._scalar_reader(type_id)()

    def _read_array(self, depth: int) -> tuple[str, tuple[Any, ...]]:
        start = self.position
        if depth > MAX_ARRAY_DEPTH:
            raise self._fault(start, f"arrays are nested more than {MAX_ARRAY_DEPTH} deep")
        type_id = int(self._unpack("<I", "an array's type"))
        if type_id == ARRAY_TYPE:
            count = self._read_count("arrays", MAX_ARRAY_LENGTH, least_bytes=4 + 8)
            items = [self._read_array(depth + 1) for _ in range(count)]
            names = {name for name, _ in items}
            return f"array[{'|'.join(sorted(names))}]", tuple(value for _, value in items)
        read = self._scalar_reader(type_id)
        name = f"array[{value_type_name(type_id)}]"
        if type_id == STRING_TYPE:
            count = self._read_count("strings", MAX_ARRAY_LENGTH, least_bytes=8)
            return name, tuple(read() for _ in range(count))
        code, size = SCALAR_TYPES[type_id][1:]
        count = self._read_count("array items", MAX_ARRAY_LENGTH, least_bytes=size)
        if type_id == BOOL_TYPE:
            return name, tuple(read() for _ in range(count))
        return name, struct.unpack(f"<{count}{code}", self._take(count * size, "an array"))

    def _scalar_reader(self, type_id: int) -> Callable[[], Any]:
        if type_id == STRING_TYPE:
            return lambda: self._read_text("a string", MAX_STRING_BYTES)
        if type_id not in SCALAR_TYPES:
            raise self._fault(self.position - 4, f"{type_id} is no type of a value")
        if type_id == BOOL_TYPE:
            return self._read_bool
        name, code, _ = SCALAR_TYPES[type_id]
        return lambda: self._unpack(f"<{code}", name)

    def _read_bool(self) -> bool:
        value = self._unpack("<B", "a bool")
        if value not in (0, 1):
            raise self._fault(self.position - 1, f"a bool is {value}, expected 0 or 1")
        return bool(value)

    def _read_text(self, what: str, most_bytes: int) -> str:
        start = self.position
        length = int(self._unpack("<Q", f"the length of {what}"))
        if length > most_bytes:
            raise self._fault(start, f"{what} of {length} bytes, expected at most {most_bytes}")
        try:
            return self._take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._fault(start + 8 + error.start, f"{what} is not UTF-8") from None

    def _read_count(self, what: str, most: int, *, least_bytes: int) -> int:
        """A count of things that take at least `least_bytes` each in the file."""
        start = self.position
        count = int(self._unpack("<Q", f"the number of {what}"))
        if count > most:
            raise self._fault(start, f"{count} {what}, expected at most {most}")
        if count * least_bytes > self.limit - self.position:
            raise self._fault(start, f"{count} {what} do not fit into the {self.limit - self.position} bytes left")
        return count

    def _unpack(self, layout: str, what: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout), what))[0]

    def _take(self, size: int, what: str) -> bytes:
        if size > self.limit - self.position:
            reason = "the file was cut short" if self.limit == self.file_size else "the header is too long"
            raise self._fault(
                self.position, f"{what} needs {size} bytes, {self.limit - self.position} are left; {reason}"
            )
        data = self.stream.read(size)
        if len(data) != size:
            raise self._fault(self.position, f"{what} needs {size} bytes, {len(data)} could be read")
        self.position += size
        return data

    def _fault(self, offset: int, found: str) -> IntegrityError:
        return IntegrityError(f"{self.path}: at byte {offset}: {found}; rebuild or fetch the file again")
