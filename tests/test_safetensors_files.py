"""Safetensors files: the same bytes as the library's, and every hostile file refused."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from karma_electric import safetensors_files
from karma_electric.errors import IntegrityError
from karma_electric.safetensors_files import (
    INDEX_NAME,
    SafetensorsWriter,
    karma_metadata,
    open_safetensors,
    open_safetensors_folder,
    save_safetensors,
)

KINDS = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.float16, torch.bfloat16, torch.int32, torch.float32]
KINDS += [torch.float64, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.complex64]
KINDS += [torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e8m0fnu]

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
SHAPES = st.lists(st.integers(0, 3), max_size=4)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    result = {}
    for name in draw(st.lists(NAMES, unique=True, max_size=5)):
        kind = draw(st.sampled_from(KINDS))
        dice = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
        raw = torch.randint(0, 256, (*draw(SHAPES), kind.itemsize), dtype=torch.uint8, generator=dice)
        result[name] = (raw % 2 == 0).squeeze(-1) if kind == torch.bool else raw.view(kind).squeeze(-1)
    return result


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return torch.equal(*flat)


@given(tensors(), st.sampled_from([None, {"format": "pt"}, {"karma": '{"é":"\\u0001"}'}]))
def test_writer_gives_the_bytes_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, torch.Tensor], metadata: dict[str, str] | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.safetensors"
    save_safetensors(path, contents, metadata)
    assert path.read_bytes() == safetensors.torch.save(contents, metadata)


@given(tensors())
def test_reader_gives_the_tensors_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, contents: dict[str, torch.Tensor]
) -> None:
    path = tmp_path_factory.getbasetemp() / "read.safetensors"
    path.write_bytes(safetensors.torch.save(contents, {"a": "1", "b": "2"}))
    file = open_safetensors(path)
    assert file.metadata == {"a": "1", "b": "2"}
    assert set(file.tensors) == set(contents)
    for name, tensor in contents.items():
        assert same_bits(file.load(name), tensor)
        raw = b"".join(bytes(chunk) for chunk in file.chunks(name))
        assert raw == bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def test_a_part_of_the_rows_is_read(tmp_path: Path) -> None:
    tensor = torch.arange(30.0).reshape(10, 3).bfloat16()
    save_safetensors(tmp_path / "t.safetensors", {"before": torch.ones(1), "t": tensor})
    file = open_safetensors(tmp_path / "t.safetensors")
    assert torch.equal(file.load("t", slice(4, 7)), tensor[4:7])
    assert torch.equal(file.load("t", slice(8, 99)), tensor[8:])


def test_chunks_cover_a_tensor_larger_than_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_files, "CHUNK_BYTES", 7)
    tensor = torch.arange(20, dtype=torch.uint8)
    save_safetensors(tmp_path / "t.safetensors", {"t": tensor})
    pieces = [bytes(chunk) for chunk in open_safetensors(tmp_path / "t.safetensors").chunks("t")]
    assert [len(piece) for piece in pieces] == [7, 7, 6]
    assert b"".join(pieces) == bytes(range(20))


def header(fields: Any, data: bytes = b"", *, pad: bool = True) -> bytes:
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    if pad:
        text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def entry(shape: Any, offsets: Any, kind: Any = "F32", **more: Any) -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": offsets, **more}


DEEP = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
ATTACKS: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "header's length"),
    "seven bytes": (b"\x01" * 7, "header's length"),
    "header longer than any memory": ((2**63).to_bytes(8, "little") + b"{}", "header's length is 9223372036854775808"),
    "header one byte past the end": ((3).to_bytes(8, "little") + b"{}", "header's length is 3"),
    "header over the limit": ((100_000_001).to_bytes(8, "little") + b"{}", "header's length"),
    "header of no bytes": ((0).to_bytes(8, "little"), "does not begin"),
    "leading space": (header(b" {}"), "does not begin"),
    "a list": (header(b"[1]"), "does not begin"),
    "not JSON": (header(b'{"a":'), "not JSON"),
    "invalid UTF-8": (header(b'{"\xff\xfe":1}'), "not UTF-8"),
    "nested deeply": (header(DEEP), "nested too deeply|not JSON"),
    "an endless number": (header(b'{"a":' + b"9" * 10_000 + b"}"), "not JSON"),
    "a name twice": (
        header(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "'a' stands twice",
    ),
    "a key twice": (
        header(b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
        "stands twice",
    ),
    "metadata not text": (header({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata a list": (header({"__metadata__": []}), "__metadata__"),
    "entry a number": (header({"a": 7}), "'a'.*exactly dtype"),
    "entry with another key": (header({"a": entry([1], [0, 4], x=1)}, b"1234"), "exactly dtype"),
    "unknown type": (header({"a": entry([1], [0, 4], "F31")}, b"1234"), "dtype is 'F31'"),
    "type a list": (header({"a": entry([1], [0, 4], ["F32"])}, b"1234"), "dtype is"),
    "negative size": (header({"a": entry([-1], [0, 4])}, b"1234"), "shape is"),
    "size a fraction": (header({"a": entry([1.0], [0, 4])}, b"1234"), "shape is"),
    "size true": (header({"a": entry([True], [0, 4])}, b"1234"), "shape is"),
    "huge size": (header({"a": entry([2**62, 4], [0, 0])}), "shape is"),
    "product beyond 64 bits": (header({"a": entry([2**40, 2**40], [0, 0])}), "takes"),
    "too many dimensions": (header({"a": entry([1] * 1000, [0, 4])}, b"1234"), "shape is"),
    "shape and offsets disagree": (header({"a": entry([2], [0, 4])}, b"1234"), "takes 64 bits"),
    "half a byte": (header({"a": entry([3], [0, 1], "F4")}, b"1"), "takes 12 bits"),
    "offsets reversed": (header({"a": entry([1], [4, 0])}, b"1234"), "data_offsets are"),
    "three offsets": (header({"a": entry([1], [0, 4, 4])}, b"1234"), "data_offsets are"),
    "negative offset": (header({"a": entry([1], [-4, 0])}, b"1234"), "data_offsets are"),
    "overlap": (header({"a": entry([2], [0, 8]), "b": entry([1], [4, 8])}, b"12345678"), "'b'.*overlaps"),
    "the same bytes twice": (header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}, b"1234"), "'b'.*overlaps"),
    "gap": (header({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, b"x" * 12), "'b'.*gap"),
    "gap before the first": (header({"a": entry([1], [4, 8])}, b"x" * 8), "'a'.*gap"),
    "truncated body": (header({"a": entry([2], [0, 8])}, b"1234567"), "describes 8 bytes .* has 7"),
    "bytes after the last": (header({"a": entry([1], [0, 4])}, b"12345"), "describes 4 bytes .* has 5"),
    "body without tensors": (header({}, b"1"), "describes 0 bytes"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_a_hostile_file_is_refused(tmp_path: Path, attack: str) -> None:
    contents, message = ATTACKS[attack]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(contents)
    with pytest.raises(IntegrityError, match=message) as caught:
        open_safetensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_header_of_many_names_with_a_late_duplicate_is_refused(tmp_path: Path) -> None:
    names = [f'"{number}":0' for number in range(200_000)]  # a quadratic search would take minutes
    path = tmp_path / "bad.safetensors"
    path.write_bytes(header(("{" + ",".join([*names, '"199999":0']) + "}").encode()))
    with pytest.raises(IntegrityError, match="'199999' stands twice"):
        open_safetensors(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        open_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(IntegrityError, match="not a regular file"):
        open_safetensors(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(IntegrityError, match="not a regular file"):
        open_safetensors(tmp_path / "pipe.safetensors")


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_file_is_refused_or_well_formed(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, position: int, value: int
) -> None:
    good = bytearray(safetensors.torch.save({"a": torch.ones(2, 3), "b": torch.zeros(4).half()}))
    good[position % len(good)] = value
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(bytes(good[: len(good) - position % 3]) + (tail if position % 2 else b""))
    try:
        file = open_safetensors(path)
    except IntegrityError:
        return
    for name, found in file.tensors.items():
        assert found.start + found.n_bytes <= path.stat().st_size
        assert tuple(file.load(name).shape) == found.shape


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_safetensors(path, {"t": torch.ones(100)})
    file = open_safetensors(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(IntegrityError, match="'t': the file became shorter"):
        file.load("t")
    with pytest.raises(IntegrityError, match="no tensor 'u'"):
        file.load("u")


def test_a_type_that_torch_lacks_is_refused_on_loading(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(header({"a": entry([4], [0, 2], "F4")}, b"12"))
    file = open_safetensors(path)
    assert [bytes(chunk) for chunk in file.chunks("a")] == [b"12"]
    with pytest.raises(IntegrityError, match="F4 has no torch counterpart"):
        file.load("a")


def write_shards(folder: Path, weight_map: dict[str, Any], shards: dict[str, list[str]]) -> None:
    folder.mkdir()
    for shard, names in shards.items():
        save_safetensors(folder / shard, {name: torch.ones(2) for name in names})
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    write_shards(
        tmp_path / "m", {"b": "2.safetensors", "a": "1.safetensors"}, {"1.safetensors": ["a"], "2.safetensors": ["b"]}
    )
    weights = open_safetensors_folder(tmp_path / "m")
    assert weights.names() == ["a", "b"]
    assert weights.file_of("b").path.name == "2.safetensors"
    with pytest.raises(IntegrityError, match="no tensor 'c'"):
        weights.file_of("c")


BAD_INDICES: dict[str, tuple[dict[str, Any], dict[str, list[str]], str]] = {
    "tensor not in its shard": ({"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": ["a"]}, "'b': not in"),
    "tensor not in the index": (
        {"a": "1.safetensors"},
        {"1.safetensors": ["a", "b"]},
        "'b': the index places it in None",
    ),
    "tensor in two shards": (
        {"a": "1.safetensors", "b": "2.safetensors"},
        {"1.safetensors": ["a", "b"], "2.safetensors": ["b"]},
        "'b': the index places it in 2.safetensors",
    ),
    "a path outside": ({"a": "../1.safetensors"}, {}, "plain"),
    "an absolute path": ({"a": "/etc/1.safetensors"}, {}, "plain"),
    "a name with a NUL": ({"a": "1\0.safetensors"}, {}, "plain"),
    "another suffix": ({"a": "model.bin"}, {}, "plain"),
    "a shard that is no text": ({"a": 1}, {}, "plain"),
    "no tensors": ({}, {}, "weight_map"),
    "a missing shard": ({"a": "1.safetensors"}, {}, "cannot be read"),
}


@pytest.mark.parametrize("case", sorted(BAD_INDICES))
def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path, case: str) -> None:
    weight_map, shards, message = BAD_INDICES[case]
    write_shards(tmp_path / "m", weight_map, shards)
    with pytest.raises(IntegrityError, match=message):
        open_safetensors_folder(tmp_path / "m")


def test_a_folder_with_both_forms_is_refused(tmp_path: Path) -> None:
    write_shards(tmp_path / "m", {"a": "1.safetensors"}, {"1.safetensors": ["a"], "model.safetensors": ["a"]})
    with pytest.raises(IntegrityError, match="holds both"):
        open_safetensors_folder(tmp_path / "m")


def test_the_writer_takes_tensors_in_any_order_and_only_as_announced(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    announced = {"a": ("F32", (2,)), "b": ("BF16", (3,))}
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]).bfloat16()
    with SafetensorsWriter(path, announced) as writer:
        writer.write("b", b)
        writer.write_chunks("a", [a.numpy().tobytes()[:3], a.numpy().tobytes()[3:]])
        with pytest.raises(ValueError, match="written already"):
            writer.write("b", b)
    assert path.read_bytes() == safetensors.torch.save({"a": a, "b": b})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644

    before = path.read_bytes()
    for wrong in (torch.ones(3), torch.ones(2).half()):
        with pytest.raises(ValueError, match="announced was"), SafetensorsWriter(path, announced) as writer:
            writer.write("a", wrong)
    for size in (7, 9):
        with pytest.raises(ValueError, match="announced were 8"), SafetensorsWriter(path, announced) as writer:
            writer.write_chunks("a", [b"x" * size])
    with pytest.raises(ValueError, match="never written: b"), SafetensorsWriter(path, announced) as writer:
        writer.write("a", a)
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [path]


def test_metadata_holds_one_key(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(ValueError, match="two or more metadata keys"):
        save_safetensors(path, {}, {"a": "1", "b": "2"})
    save_safetensors(path, {}, karma_metadata({"b": 1, "a": [2.5, "é"]}))
    assert open_safetensors(path).metadata == {"karma": '{"a":[2.5,"é"],"b":1}'}


SCRIPT = """
import sys, torch
from pathlib import Path
from karma_electric.safetensors_files import karma_metadata, save_safetensors
names = {f"layer.{i}" for i in range(50)}
value = dict.fromkeys({f"key{i}" for i in range(20)}, 1)
save_safetensors(Path(sys.argv[1]), {n: torch.full((3, 4), float(n[6:])) for n in names}, karma_metadata(value))
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        path = tmp_path / seed / f"{seed}.safetensors"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", SCRIPT, str(path)], check=True, env=environment)
        written.append(path.read_bytes())
    assert written[0] == written[1]
