from __future__ import annotations

import os
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files import reader
from karma_electric.gguf_files.reader import TensorInfo, read_header
from karma_electric.gguf_files.type_codes import TENSOR_TYPES
from tests.gguf_files.raw_gguf import (
    ARRAY,
    BOOL,
    F32,
    FLOAT64,
    INT32,
    Q4_K,
    Q8_0,
    STRING,
    UINT8,
    UINT32,
    UINT64,
    RawGguf,
    array,
    entry,
    every_type,
    tensor,
    text,
)

HUGE = 2**64 - 1


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def one_entry(*entries: bytes) -> bytes:
    return RawGguf(entries=list(entries)).build()


def one_tensor(*tensors: bytes, data: int = 64, alignment: int = 32) -> bytes:
    return RawGguf(tensors=list(tensors), data=bytes(data), alignment=alignment).build()


def aligned(value: int, kind: int = UINT32) -> bytes:
    payload = u32(value) if kind == UINT32 else struct.pack("<Q", value)
    return RawGguf(entries=[entry("general.alignment", kind, payload)]).build()


@pytest.fixture
def written(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "file.gguf"
        path.write_bytes(data)
        return path

    return write


def test_every_type_of_value_and_the_table_of_tensors_are_read(written: Callable[[bytes], Path]) -> None:
    data = every_type().build()
    header = read_header(written(data))
    assert header.version == 3
    assert header.file_size == len(data)
    assert header.data_offset == len(data) - 144
    assert header.metadata == {
        "general.architecture": "llama",
        "a.u8": 200,
        "a.i8": -100,
        "a.u16": 60_000,
        "a.i16": -30_000,
        "a.u32": 4_000_000_000,
        "a.i32": -2_000_000_000,
        "a.f32": 0.5,
        "a.bool": True,
        "a.u64": 2**63,
        "a.i64": -(2**62),
        "a.f64": 0.25,
        "a.text": "kůň 🐎",
        "a.words": ("a", "", "ž"),
        "a.numbers": (1, -2, 3),
        "a.flags": (False, True),
        "a.none": (),
        "a.nested": ((1, 2), (3,)),
    }
    assert header.value_types["a.f32"] == "float32"
    assert header.value_types["a.f64"] == "float64"
    assert header.value_types["a.words"] == "array[string]"
    assert header.value_types["a.nested"] == "array[array[uint8]]"
    assert header.tensors == [
        TensorInfo("direction.1", (8,), "F32", 0, 32),
        TensorInfo("matrix.weight", (32, 2), "Q8_0", 32, 68),
        TensorInfo("half.weight", (4, 2), "F16", 128, 16),
    ]


def test_a_file_of_gguf_py_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "axis.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_float32("acap.threshold.3", -1.5)
    writer.add_token_list(["a", "b"])
    writer.add_tensor("direction.3", np.arange(5, dtype=np.float32))
    writer.add_tensor("direction.4", np.ones((2, 3), dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_header(path)
    theirs = gguf.GGUFReader(path)
    assert header.metadata["acap.threshold.3"] == -1.5
    assert header.value_types["acap.threshold.3"] == "float32"
    assert header.metadata["tokenizer.ggml.tokens"] == ("a", "b")
    assert [(t.name, list(t.shape), t.type, t.size_bytes, header.data_offset + t.offset) for t in header.tensors] == [
        (t.name, t.shape.tolist(), t.tensor_type.name, t.n_bytes, t.data_offset) for t in theirs.tensors
    ]


def test_the_sizes_of_tensor_types_are_those_of_gguf_py() -> None:
    for number, (name, block_length, block_bytes) in TENSOR_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name == name
        assert GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)] == (block_length, block_bytes)


def test_version_2_is_read_and_a_file_without_tensors_needs_no_padding(written: Callable[[bytes], Path]) -> None:
    raw = RawGguf(version=u32(2), entries=[entry("k", UINT8, b"\7")], alignment=1)
    header = read_header(written(raw.build()))
    assert (header.version, header.metadata, header.tensors) == (2, {"k": 7}, [])


def test_a_stated_alignment_moves_the_data(written: Callable[[bytes], Path]) -> None:
    raw = RawGguf(
        entries=[entry("general.alignment", UINT32, u32(256))],
        tensors=[tensor("t", (4,), F32, 256)],
        data=bytes(272),
        alignment=256,
    )
    header = read_header(written(raw.build()))
    assert header.data_offset == 256
    assert header.tensors[0].offset == 256


BROKEN = {
    "empty": (b"", "at byte 0: the magic needs 4 bytes, 0 are left"),
    "other magic": (b"GGML" + bytes(60), "at byte 0: found b'GGML'"),
    "version 1": (RawGguf(version=u32(1)).build(), "at byte 4: found version 1"),
    "version 4": (RawGguf(version=u32(4)).build(), "found version 4"),
    "big-endian": (RawGguf(version=struct.pack(">I", 3)).build(), "found big-endian version 3"),
    "no counts": (b"GGUF" + u32(3), "cut short"),
    "43 bytes": (every_type().build()[:43], "3 tensors do not fit into the 27 bytes left"),
    "huge tensor count": (RawGguf(tensor_count=HUGE).build(), "tensors, expected at most"),
    "huge entry count": (RawGguf(entry_count=HUGE).build(), "metadata entries, expected at most"),
    "more entries than bytes": (RawGguf(entry_count=60_000).build(), "do not fit"),
    "more tensors than bytes": (RawGguf(tensor_count=60_000).build(), "do not fit"),
    "huge key": (one_entry(struct.pack("<Q", HUGE) + bytes(64)), "expected at most 65535"),
    "huge string": (one_entry(entry("k", STRING, struct.pack("<Q", HUGE))), "a string of"),
    "string beyond the end": (one_entry(entry("k", STRING, struct.pack("<Q", 5000))), "needs 5000 bytes"),
    "huge array": (one_entry(entry("k", ARRAY, array(UINT8, HUGE, b""))), "array items, expected at most"),
    "array beyond the end": (one_entry(entry("k", ARRAY, array(INT32, 1_999_999, b""))), "do not fit"),
    "strings beyond the end": (one_entry(entry("k", ARRAY, array(STRING, 1_999_999, b""))), "do not fit"),
    "arrays beyond the end": (one_entry(entry("k", ARRAY, array(ARRAY, 1_999_999, b""))), "do not fit"),
    "deep": (one_entry(entry("k", ARRAY, array(ARRAY, 1, b"") * 40 + bytes(64))), "nested more than 2 deep"),
    "unknown value type": (one_entry(entry("k", 13, bytes(64))), "13 is no type of a value"),
    "unknown item type": (one_entry(entry("k", ARRAY, array(99, 1, bytes(64)))), "99 is no type of a value"),
    "bool of 2": (one_entry(entry("k", BOOL, b"\2")), "a bool is 2"),
    "key twice": (one_entry(entry("k", UINT8, b"\1"), entry("k", UINT8, b"\1")), "'k' is empty or stands twice"),
    "empty key": (one_entry(entry("", UINT8, b"\1")), "is empty or stands twice"),
    "key not UTF-8": (one_entry(entry(b"k\xff", UINT8, b"\1")), "at byte 33: a key is not UTF-8"),
    "text not UTF-8": (one_entry(entry("k", STRING, text(b"\xc3("))), "a string is not UTF-8"),
    "alignment 0": (aligned(0), "general.alignment is 0"),
    "alignment 48": (aligned(48), "general.alignment is 48"),
    "alignment huge": (aligned(2**31), "general.alignment is 2147483648"),
    "alignment uint64": (aligned(32, UINT64), "is of type uint64"),
    "tensor twice": (one_tensor(tensor("t", (8,), F32, 0), tensor("t", (8,), F32, 32)), "'t' stands twice"),
    "long name": (one_tensor(tensor("n" * 64, (8,), F32, 0)), "a tensor's name of 64 bytes"),
    "no dimensions": (one_tensor(tensor("t", (), F32, 0)), "has 0 dimensions"),
    "five dimensions": (one_tensor(tensor("t", (1, 1, 1, 1, 1), F32, 0)), "has 5 dimensions"),
    "zero dimension": (one_tensor(tensor("t", (8, 0), F32, 0)), "has the shape (8, 0)"),
    "half a block": (one_tensor(tensor("t", (128,), Q4_K, 0)), "in blocks of 256"),
    "unknown tensor type": (one_tensor(tensor("t", (8,), 4, 0)), "unknown type 4"),
    "off the alignment": (one_tensor(tensor("t", (8,), F32, 4)), "multiple of 32"),
    "beyond the end": (one_tensor(tensor("t", (17,), F32, 0)), "cut short"),
    "huge tensor": (one_tensor(tensor("t", (2**60, 2**60), F32, 0)), "cut short"),
    "huge offset": (one_tensor(tensor("t", (8,), F32, 2**63)), "cut short"),
    "overlap": (one_tensor(tensor("t", (16,), F32, 0), tensor("u", (8,), F32, 32)), "'u' lies over 't'"),
    "two at one place": (one_tensor(tensor("t", (32,), Q8_0, 0), tensor("u", (8,), F32, 0)), "lies over"),
    "value cut": (one_entry(entry("k", FLOAT64, b"\1"))[:40], "cut short"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_with_its_place(case: str, written: Callable[[bytes], Path]) -> None:
    data, message = BROKEN[case]
    path = written(data)
    tracemalloc.start()
    try:
        with pytest.raises(IntegrityError) as caught:
            read_header(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}: at byte ")
    assert peak_bytes < 1_000_000


def test_a_header_beyond_the_limit_is_refused(
    written: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(every_type().build())
    monkeypatch.setattr(reader, "MAX_HEADER_BYTES", 400)
    with pytest.raises(IntegrityError, match="the header is too long"):
        read_header(path)


def test_what_is_no_file_is_an_input_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "missing.gguf"):
        with pytest.raises(InputError):
            read_header(tmp_path / name)


VALID = every_type().build()


def read_or_refuse(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        header = read_header(path)
    except IntegrityError:
        return
    end = max((header.data_offset + t.offset + t.size_bytes for t in header.tensors), default=0)
    assert end <= len(data)


@given(
    changes=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=8),
    length=st.integers(0, len(VALID)) | st.just(len(VALID)),
)
@settings(max_examples=400)
def test_random_damage_is_read_or_refused(
    changes: list[tuple[int, int]], length: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(VALID)
    for place, value in changes:
        data[place] = value
    read_or_refuse(tmp_path_factory.getbasetemp() / "damaged.gguf", bytes(data[:length]))


@given(place=st.integers(0, len(VALID) - 8), number=st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**40, 2**63, HUGE]))
@settings(max_examples=200)
def test_large_numbers_anywhere_are_read_or_refused(
    place: int, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = VALID[:place] + struct.pack("<Q", number) + VALID[place + 8 :]
    read_or_refuse(tmp_path_factory.getbasetemp() / "large.gguf", data)


@given(data=st.binary(max_size=200))
def test_garbage_behind_the_magic_is_read_or_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_or_refuse(tmp_path_factory.getbasetemp() / "garbage.gguf", b"GGUF" + u32(3) + data)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(VALID)):
        path = tmp_path / "short.gguf"
        path.write_bytes(VALID[:length])
        with pytest.raises(IntegrityError):
            read_header(path)
