"""Safetensors files: a bounded reader, folders of shards, and a writer that streams.

The format (github.com/huggingface/safetensors): 8 bytes little-endian length N, N bytes of a JSON object that maps
tensor names to `dtype`, `shape` and `data_offsets` [begin, end) counted from the end of the header, then the data,
without gaps. `__metadata__` maps text to text.

A file is not trusted: its header is read within bounds, and a tensor can be had only after shapes, types and offsets
were found to agree with each other and with the file's size. Every fault is an IntegrityError.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from karma_electric.canonical import canonical_json, parse_json_object, read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import atomic_file

if TYPE_CHECKING:
    from torch import Tensor, dtype

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_DIMENSIONS = 32
MAX_DIMENSION = 2**48
CHUNK_BYTES = 16 * 1024 * 1024
_METADATA = "__metadata__"
_SHARD_NAME = re.compile(r"[A-Za-z0-9][\w.-]*\.safetensors", re.ASCII)

# name: (bits, torch type), in the library's order: the later in this table, the earlier in the file.
_TYPES: dict[str, tuple[int, str | None]] = {
    "BOOL": (8, "bool"),
    "F4": (4, None),
    "F6_E2M3": (6, None),
    "F6_E3M2": (6, None),
    "U8": (8, "uint8"),
    "I8": (8, "int8"),
    "F8_E5M2": (8, "float8_e5m2"),
    "F8_E4M3": (8, "float8_e4m3fn"),
    "F8_E8M0": (8, "float8_e8m0fnu"),
    "F8_E4M3FNUZ": (8, "float8_e4m3fnuz"),
    "F8_E5M2FNUZ": (8, "float8_e5m2fnuz"),
    "I16": (16, "int16"),
    "U16": (16, "uint16"),
    "F16": (16, "float16"),
    "BF16": (16, "bfloat16"),
    "I32": (32, "int32"),
    "U32": (32, "uint32"),
    "F32": (32, "float32"),
    "C64": (64, "complex64"),
    "F64": (64, "float64"),
    "I64": (64, "int64"),
    "U64": (64, "uint64"),
}
_LAYOUT_ORDER = {name: position for position, name in enumerate(_TYPES)}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor as the header describes it. `start` is counted in bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    n_bytes: int


@dataclass(frozen=True)
class SafetensorsFile:
    """An inspected file; tensors are read one at a time, when asked for. The order of `tensors` is that of the data."""

    path: Path
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    def load(self, name: str, rows: slice | None = None) -> Tensor:
        """Tensor `name` in a memory of its own, or only `rows` (start:stop) of its first dimension."""
        import torch

        entry = self._entry(name)
        kind = torch_dtype(entry.dtype, f"{self.path}: {_shown(name)}")
        shape, start, n_bytes = entry.shape, entry.start, entry.n_bytes
        if rows is not None:
            first, last, _ = rows.indices(shape[0])
            row_bytes = n_bytes // shape[0] if shape[0] else 0
            shape, start, n_bytes = (last - first, *shape[1:]), start + first * row_bytes, (last - first) * row_bytes
        data = bytearray(n_bytes)
        with self.path.open("rb", buffering=0) as stream:
            self._read_into(stream, memoryview(data), start, name)
        if not n_bytes:
            return torch.empty(shape, dtype=kind)
        return torch.frombuffer(data, dtype=kind).reshape(shape)

    def chunks(self, name: str) -> Iterator[memoryview]:
        """The bytes of tensor `name`, in pieces of at most CHUNK_BYTES; a piece is valid until the next."""
        entry = self._entry(name)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, entry.n_bytes)))
        with self.path.open("rb", buffering=0) as stream:
            for offset in range(0, entry.n_bytes, CHUNK_BYTES):
                piece = buffer[: min(CHUNK_BYTES, entry.n_bytes - offset)]
                self._read_into(stream, piece, entry.start + offset, name)
                yield piece

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.tensors:
            raise IntegrityError(f"{self.path}: no tensor {_shown(name)} among {len(self.tensors)}; rebuild the file")
        return self.tensors[name]

    def _read_into(self, stream: Any, target: memoryview, start: int, name: str) -> None:
        stream.seek(start)
        filled = 0
        while filled < len(target):
            if not (count := stream.readinto(target[filled:])):
                raise IntegrityError(f"{self.path}: {_shown(name)}: the file became shorter; rebuild it")
            filled += count


@dataclass(frozen=True)
class SafetensorsFolder:
    """The weights of a model folder: one file or shards with an index, in the order of their names."""

    folder: Path
    files: Mapping[str, SafetensorsFile]  # file name -> file

    def file_of(self, name: str) -> SafetensorsFile:
        """The file that holds tensor `name`."""
        for file in self.files.values():
            if name in file.tensors:
                return file
        raise IntegrityError(f"{self.folder}: no tensor {_shown(name)}; rebuild or download the folder again")

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(name for file in self.files.values() for name in file.tensors)


def torch_dtype(name: str, where: str) -> dtype:
    """The torch type for a safetensors type; `where` starts the IntegrityError for a type that has none."""
    import torch

    torch_name = _TYPES[name][1]
    if torch_name is None:
        raise IntegrityError(f"{where}: type {name} has no torch counterpart; convert the file to another type")
    kind: dtype = getattr(torch, torch_name)
    return kind


def safetensors_dtype(kind: dtype) -> str:
    """The safetensors type for a torch type."""
    text = str(kind).removeprefix("torch.")
    for name, (_, torch_name) in _TYPES.items():
        if torch_name == text:
            return name
    raise ValueError(f"{kind} cannot be stored in a safetensors file")


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header of `path`. Raises IntegrityError, naming file and tensor, for anything amiss."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise IntegrityError(f"{path}: not a regular file; expected a safetensors file")
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(MAX_HEADER_BYTES, status.st_size - 8):
                raise IntegrityError(
                    f"{path}: the header's length is {length} bytes in a file of {status.st_size}; expected at most "
                    f"{MAX_HEADER_BYTES} and within the file; rebuild or download it again"
                )
            header = stream.read(length)
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); expected a safetensors file") from error
    return _parse_header(path, header, data_bytes=status.st_size - 8 - length)


def open_safetensors_folder(folder: Path) -> SafetensorsFolder:
    """The weights in `folder`: `model.safetensors`, or the shards of `model.safetensors.index.json`.

    Index and shards must name the same tensors, each once, else IntegrityError.
    """
    index = folder / INDEX_NAME
    single = folder / SINGLE_NAME
    if index.exists() and single.exists():
        raise IntegrityError(f"{folder}: holds both {SINGLE_NAME} and {INDEX_NAME}; remove the one that is stale")
    if not index.exists():
        return SafetensorsFolder(folder, MappingProxyType({SINGLE_NAME: open_safetensors(single)}))
    shard_of = _read_index(index)
    files = {name: open_safetensors(folder / name) for name in sorted(set(shard_of.values()))}
    for shard, file in files.items():
        for name in file.tensors:
            if shard_of.get(name) != shard:
                raise IntegrityError(
                    f"{folder / shard}: {_shown(name)}: the index places it in {shard_of.get(name)}; rebuild {folder}"
                )
    for name, shard in shard_of.items():
        if name not in files[shard].tensors:
            raise IntegrityError(f"{index}: {_shown(name)}: not in {shard}; rebuild {folder}")
    return SafetensorsFolder(folder, MappingProxyType(files))


def _read_index(path: Path) -> dict[str, str]:
    try:
        shard_of = read_json_object(path, max_bytes=MAX_INDEX_BYTES).get("weight_map")
    except InputError as error:
        raise IntegrityError(str(error)) from error
    if not isinstance(shard_of, dict) or not shard_of:
        raise IntegrityError(f"{path}: weight_map is missing or empty; expected tensor names and their shards")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise IntegrityError(
                f"{path}: {_shown(name)}: shard {_shown(shard)}; expected a plain *.safetensors file name"
            )
    return shard_of


def _parse_header(path: Path, header: bytes, *, data_bytes: int) -> SafetensorsFile:
    if not header.startswith(b"{"):
        raise IntegrityError(f"{path}: the header does not begin with '{{'; this is no safetensors file")
    try:
        fields = parse_json_object(header, f"{path}: header")
    except InputError as error:
        raise IntegrityError(str(error)) from error
    metadata = fields.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"{path}: {_METADATA} is not a map from text to text; rebuild the file")
    base = 8 + len(header)
    entries = {name: _parse_entry(value, base, f"{path}: {_shown(name)}") for name, value in fields.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].n_bytes)))
    end = base
    for name, entry in ordered.items():
        if entry.start != end:
            fault = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise IntegrityError(f"{path}: {_shown(name)}: begins at byte {entry.start}, expected {end}; it {fault}")
        end += entry.n_bytes
    if end != base + data_bytes:
        raise IntegrityError(
            f"{path}: the header describes {end - base} bytes of tensors, the file has {data_bytes}; "
            "rebuild or download it again"
        )
    return SafetensorsFile(path, MappingProxyType(ordered), MappingProxyType(metadata))


def _parse_entry(value: object, base: int, where: str) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise IntegrityError(f"{where}: expected an object with exactly dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise IntegrityError(f"{where}: dtype is {_shown(kind)}, expected one of {', '.join(_TYPES)}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise IntegrityError(
            f"{where}: shape is {_shown(shape)}, expected at most {MAX_DIMENSIONS} numbers from 0 to {MAX_DIMENSION}"
        )
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise IntegrityError(f"{where}: data_offsets are {_shown(offsets)}, expected [begin, end] with begin <= end")
    bits = math.prod(shape) * _TYPES[kind][0]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise IntegrityError(
            f"{where}: {kind} of shape {shape} takes {bits} bits, data_offsets in bytes are {offsets}; rebuild the file"
        )
    return TensorEntry(kind, tuple(shape), base + offsets[0], offsets[1] - offsets[0])


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_DIMENSION for item in value)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


def karma_metadata(value: object) -> dict[str, str]:
    """The one metadata key of our own files: `karma`, holding canonical JSON."""
    return {"karma": canonical_json(value)}


class SafetensorsWriter:
    """Write `path` tensor by tensor, in any order, after types and shapes of all were given; atomic.

    The bytes follow from names, types, shapes, values and metadata alone, and equal those of the safetensors library
    (tensors by alignment, then name). At most one metadata key is taken: the library writes two or more in an order
    that differs from run to run. Leaving the block with a tensor missing is a ValueError, and nothing is written.

        with SafetensorsWriter(path, {"weight": ("F32", (4, 2))}) as writer:
            writer.write("weight", tensor)
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None = None
    ) -> None:
        if metadata and len(metadata) > 1:
            raise ValueError(f"two or more metadata keys ({', '.join(metadata)}) have no fixed order; use one")
        self._path = path
        header, self._entries = _compose_header(tensors, metadata)
        self._header = header
        self._missing = set(self._entries)

    def __enter__(self) -> SafetensorsWriter:
        self._exits = contextlib.ExitStack()
        temporary = self._exits.enter_context(atomic_file(self._path))
        self._exits.push(self._refuse_missing)
        self._stream = self._exits.enter_context(temporary.open("wb"))
        self._stream.write(self._header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write tensor `name`; type and shape must be those announced."""
        import torch

        entry = self._entries[name]
        found = (safetensors_dtype(tensor.dtype), tuple(tensor.shape))
        if found != (entry.dtype, entry.shape):
            raise ValueError(f"{self._path}: {name} is {found}, announced was {(entry.dtype, entry.shape)}")
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        self.write_chunks(name, [plain.numpy().data])

    def write_chunks(self, name: str, chunks: Iterable[bytes | memoryview]) -> None:
        """Write the raw bytes of tensor `name`, which must be as many as announced."""
        entry = self._entries[name]
        if name not in self._missing:
            raise ValueError(f"{self._path}: {name} was written already")
        self._stream.seek(entry.start)
        written = 0
        for chunk in chunks:
            written += len(chunk)
            if written > entry.n_bytes:
                break
            self._stream.write(chunk)
        if written != entry.n_bytes:
            raise ValueError(f"{self._path}: {name} has {written} bytes or more, announced were {entry.n_bytes}")
        self._missing.remove(name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._exits.__exit__(kind, error, traceback)

    def _refuse_missing(self, kind: type[BaseException] | None, *_: object) -> bool:
        if kind is None and self._missing:
            raise ValueError(f"{self._path}: never written: {', '.join(sorted(self._missing)[:3])}")
        return False


def save_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors that are all in memory; atomic, deterministic, mode 0644."""
    specification = {name: (safetensors_dtype(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    with SafetensorsWriter(path, specification, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def _compose_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, str] | None
) -> tuple[bytes, dict[str, TensorEntry]]:
    fields: dict[str, Any] = {_METADATA: dict(metadata)} if metadata is not None else {}
    entries: dict[str, TensorEntry] = {}
    begin = 0
    for name, (kind, shape) in sorted(tensors.items(), key=lambda item: (-_LAYOUT_ORDER[item[1][0]], item[0])):
        n_bytes, odd_bits = divmod(math.prod(shape) * _TYPES[kind][0], 8)
        if name == _METADATA or odd_bits:
            raise ValueError(f"{_shown(name)}, {kind} of shape {tuple(shape)}, cannot be stored")
        fields[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, begin + n_bytes]}
        entries[name] = TensorEntry(kind, tuple(shape), begin, n_bytes)
        begin += n_bytes
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    header = text + b" " * (-len(text) % 8)
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"a header of {len(header)} bytes is larger than {MAX_HEADER_BYTES}")
    moved = {name: replace(entry, start=8 + len(header) + entry.start) for name, entry in entries.items()}
    return len(header).to_bytes(8, "little") + header, moved
