"""GGUF files put together byte by byte, right and wrong ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

UINT8, INT8, UINT16, INT16, UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64, INT64, FLOAT64 = range(13)
F32, F16, Q8_0, Q4_K = 0, 1, 8, 12


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(name: str | bytes, shape: Sequence[int], kind: int, offset: int) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


@dataclass
class RawGguf:
    """The parts of a file; `build` joins them, pads to the alignment and adds the data."""

    entries: list[bytes] = field(default_factory=list)
    tensors: list[bytes] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: bytes = struct.pack("<I", 3)
    entry_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32

    def build(self) -> bytes:
        entry_count = len(self.entries) if self.entry_count is None else self.entry_count
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        head = self.magic + self.version + struct.pack("<QQ", tensor_count, entry_count)
        head += b"".join(self.entries) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data


def every_type() -> RawGguf:
    """A small valid file with every type of value and three tensors."""
    return RawGguf(
        entries=[
            entry("general.architecture", STRING, text("llama")),
            entry("a.u8", UINT8, struct.pack("<B", 200)),
            entry("a.i8", INT8, struct.pack("<b", -100)),
            entry("a.u16", UINT16, struct.pack("<H", 60_000)),
            entry("a.i16", INT16, struct.pack("<h", -30_000)),
            entry("a.u32", UINT32, struct.pack("<I", 4_000_000_000)),
            entry("a.i32", INT32, struct.pack("<i", -2_000_000_000)),
            entry("a.f32", FLOAT32, struct.pack("<f", 0.5)),
            entry("a.bool", BOOL, b"\1"),
            entry("a.u64", UINT64, struct.pack("<Q", 2**63)),
            entry("a.i64", INT64, struct.pack("<q", -(2**62))),
            entry("a.f64", FLOAT64, struct.pack("<d", 0.25)),
            entry("a.text", STRING, text("kůň 🐎")),
            entry("a.words", ARRAY, array(STRING, 3, text("a") + text("") + text("ž"))),
            entry("a.numbers", ARRAY, array(INT32, 3, struct.pack("<3i", 1, -2, 3))),
            entry("a.flags", ARRAY, array(BOOL, 2, b"\0\1")),
            entry("a.none", ARRAY, array(FLOAT32, 0, b"")),
            entry("a.nested", ARRAY, array(ARRAY, 2, array(UINT8, 2, b"\1\2") + array(UINT8, 1, b"\3"))),
        ],
        tensors=[
            tensor("direction.1", (8,), F32, 0),
            tensor("matrix.weight", (32, 2), Q8_0, 32),
            tensor("half.weight", (4, 2), F16, 128),
        ],
        data=bytes(range(144)),
    )
