"""Damaged axis files: a clear error or a sound cap, never a crash, a hang, or anything else."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from karma_electric.axis.loading import load_cap
from karma_electric.axis.model_facts import ModelFacts
from karma_electric.errors import KarmaError
from karma_electric.integrity import write_bytes
from tests.axis.test_loading import AXIS, LAYERS, MODEL, SIZE, TAUS, write_axis_file
from tests.gguf_files.raw_gguf import ARRAY, FLOAT32, STRING, RawGguf, array, entry, tensor, text


def flip_bits(data: bytes, dice: random.Random, end: int) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 8)):
        changed[dice.randrange(min(end, len(data)))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def insert(data: bytes, dice: random.Random, end: int) -> bytes:
    at = dice.randrange(min(end, len(data)))
    return data[:at] + dice.randbytes(dice.randint(1, 16)) + data[at:]


def cut(data: bytes, dice: random.Random, _end: int) -> bytes:
    return data[: dice.randrange(len(data))]


def remove(data: bytes, dice: random.Random, end: int) -> bytes:
    at = dice.randrange(min(end, len(data)))
    return data[:at] + data[at + dice.randint(1, 16) :]


def huge_number(data: bytes, dice: random.Random, end: int) -> bytes:
    at = dice.randrange(min(end, len(data)) - 8)
    return data[:at] + struct.pack("<Q", dice.choice([2**63, 2**40, 2**32 - 1])) + data[at + 8 :]


@pytest.mark.parametrize("suffix", ["gguf", "pt"])
@pytest.mark.parametrize("damage", [flip_bits, insert, cut, remove, huge_number])
def test_a_damaged_file_is_an_error_or_a_sound_cap(
    tmp_path: Path, suffix: str, damage: Callable[[bytes, random.Random, int], bytes]
) -> None:
    path = tmp_path / f"axis.{suffix}"
    if suffix == "gguf":
        good = write_axis_file(path).read_bytes()
    else:
        stream = io.BytesIO()
        torch.save({"axis": torch.from_numpy(AXIS), "thresholds": TAUS}, stream)
        good = stream.getvalue()
    messages, dice = list[str](), random.Random(damage.__name__)
    for _ in range(40):
        path.write_bytes(damage(good, dice, 600))
        try:
            cap = load_cap(path, MODEL, force=True).cap
        except KarmaError as error:
            messages.append(str(error))
        else:
            assert all(0 < layer < LAYERS for layer in cap.layers)
            assert all(np.isfinite(row).all() and row.shape == (SIZE,) for row in cap.directions.values())
    assert len(messages) >= 20
    assert all(str(path) in message for message in messages)


def _axis(entries: list[bytes], **changes: int) -> bytes:
    row = tensor("direction.5", (SIZE,), 0, 0)
    data = AXIS[5].tobytes()
    return RawGguf(entries=entries, tensors=[row], data=data, **changes).build()  # type: ignore[arg-type]


TAU = entry("acap.threshold.5", FLOAT32, struct.pack("<f", -1.5))
TRAPS = {
    "a length of 2^63 for a key": _axis([TAU, struct.pack("<Q", 2**63)]),
    "an array of 2^60 values": _axis([TAU, entry("a", ARRAY, array(FLOAT32, 2**60, b""))]),
    "an array of 2^32 empty texts": _axis([TAU, entry("a", ARRAY, array(STRING, 2**32, b""))]),
    "arrays in arrays in arrays": _axis([TAU, entry("a", ARRAY, array(ARRAY, 1, b"") * 5000)]),
    "2^63 entries": _axis([TAU], entry_count=2**63),
    "2^63 tensors": _axis([TAU], tensor_count=2**63),
    "a threshold twice": _axis([TAU, TAU]),
    "text that is not UTF-8": _axis([TAU, entry("a", STRING, text(b"\xff\xfe"))]),
    "an alignment of 0": _axis([TAU, entry("general.alignment", 4, struct.pack("<I", 0))]),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_trap_for_careless_readers_is_an_error_at_once(tmp_path: Path, trap: str) -> None:
    path = tmp_path / "axis.gguf"
    path.write_bytes(TRAPS[trap])
    with pytest.raises(KarmaError, match=r"axis\.gguf"):
        load_cap(path, MODEL)


def test_the_file_around_the_traps_is_sound(tmp_path: Path) -> None:
    write_bytes(tmp_path / "axis.gguf", _axis([TAU]))
    assert load_cap(tmp_path / "axis.gguf", ModelFacts("model", SIZE, LAYERS, None)).cap.taus == {5: -1.5}
