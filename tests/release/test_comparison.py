"""What counts as nearly the same file when it was made again on another machine, and what does not."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.errors import IntegrityError
from karma_electric.release.comparison import (
    ADAPTER_TOLERANCE,
    adapter_difference,
    gguf_difference,
    same_bytes,
    text_difference,
    torch_axis_difference,
    translated,
)
from tests.adapters.adapter_files import plain_config, write_folder

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


@given(NUMBERS)
def test_equal_texts_differ_by_nothing(number: float) -> None:
    text = f'{{"a": {number!r}, "b": "v8"}}'
    assert text_difference(text, text, relative=0.0) == 0.0


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ('{"a": 1.0}', '{"a": 1.00005}', 5e-5),
        ('{"a": 0.0}', '{"a": -0.0}', 0.0),
        ("-1e-3 and 2", "-1.00001e-3 and 2", 1e-5),
        ('{"a": 1.0}', '{"a": 1.001}', None),
        ('{"a": 1.0}', '{"a": -1.0}', None),
        ('{"a": 0}', '{"a": 1e-9}', None),
        ('{"a": 1.0}', '{"b": 1.0}', None),
        ('{"a": 1.0}', '{"a": 1.0, "b": 1.0}', None),
        ("fail", "pass", None),
    ],
)
def test_numbers_in_a_text(first: str, second: str, found: float | None) -> None:
    assert text_difference(first, second, relative=1e-4) == (None if found is None else pytest.approx(found, rel=1e-3))


def test_a_small_step_is_allowed_where_it_is_stated() -> None:
    assert text_difference("0.93", "0.91", relative=1e-4, absolute=0.03) == pytest.approx(0.0215, rel=0.01)
    assert text_difference("0.93", "0.89", relative=1e-4, absolute=0.03) is None


def test_hashes_of_what_was_made_again_stand_for_the_published() -> None:
    made, published = "a" * 64, "b" * 64
    assert translated(f"x {made} y".encode(), {made: published}) == f"x {published} y".encode()


def write_gguf(path: Path, values: np.ndarray, *, kind: str = "F32", tau: float = -2.0, text: str = "a") -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", text)
    writer.add_float32("acap.threshold.3", tau)
    quantised = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind])
    raw_type = None if kind == "F32" else gguf.GGMLQuantizationType[kind]
    writer.add_tensor("a.weight", quantised, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_files_of_nearly_the_same_values(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    first = write_gguf(tmp_path / "a.gguf", values, kind=kind)
    again = write_gguf(tmp_path / "b.gguf", values, kind=kind)
    assert same_bytes(first, again)
    assert gguf_difference(first, again, {}) == (0.0, "nothing")
    values[7, 9] *= 1.0 + 1e-6 if kind == "F32" else 1.02
    near = write_gguf(tmp_path / "c.gguf", values, kind=kind)
    share, worst = gguf_difference(first, near, {})
    assert (0 < share < 1, worst) == (True, "a.weight")
    values[7, 9] += 100.0
    share, worst = gguf_difference(first, write_gguf(tmp_path / "d.gguf", values, kind=kind), {})
    assert (share > 1, worst) == (True, "a.weight")


def test_gguf_files_that_say_something_else(tmp_path: Path) -> None:
    values = np.ones((2, 32), np.float32)
    first = write_gguf(tmp_path / "a.gguf", values, text="a" * 64)
    other = write_gguf(tmp_path / "b.gguf", values, text="b" * 64)
    assert gguf_difference(first, other, {}) == (math.inf, "general.name")
    assert gguf_difference(first, other, {"b" * 64: "a" * 64}) == (0.0, "nothing")
    share, key = gguf_difference(first, write_gguf(tmp_path / "c.gguf", values, text="a" * 64, tau=-2.00001), {})
    assert (0 < share < 1, key) == (True, "acap.threshold.3")
    assert gguf_difference(first, write_gguf(tmp_path / "d.gguf", values, text="a" * 64, tau=-2.1), {})[0] > 1
    narrow = write_gguf(tmp_path / "e.gguf", values[:, :16], text="a" * 64)
    assert gguf_difference(first, narrow, {}) == (math.inf, "its table of tensors")


def test_axis_files_of_pytorch(tmp_path: Path) -> None:
    axis = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    content = {"axis": axis, "thresholds": {2: -1.5}, "alpha": 1.0, "identity": {"model": "a"}}
    for name, value in (("a", content), ("b", {**content, "thresholds": {2: -1.5000001}})):
        torch.save(value, tmp_path / f"{name}.pt")
    torch.save({**content, "axis": axis * torch.tensor([1.0, 1.0, -1.0, 1.0])[:, None]}, tmp_path / "c.pt")
    torch.save({**content, "thresholds": {3: -1.5}}, tmp_path / "d.pt")
    found = [torch_axis_difference(tmp_path / "a.pt", tmp_path / f"{name}.pt") for name in "abcd"]
    assert found[0] == 0.0
    assert 0 < found[1] < 1e-6
    assert found[2] == pytest.approx(2.0)
    assert found[3] == math.inf


def write_lora(folder: Path, *, change: float = 0.0, module: str = "model.layers.0.self_attn.q_proj") -> Path:
    draw = torch.Generator().manual_seed(3)
    a, b = torch.randn(4, 16, generator=draw), torch.randn(8, 4, generator=draw)
    a[1, 2] += change
    tensors = {f"base_model.model.{module}.lora_{name}.weight": factor for name, factor in (("A", a), ("B", b))}
    return write_folder(folder, plain_config(4, 4.0, [module.rpartition(".")[2]]), tensors)


def test_the_updates_of_adapters(tmp_path: Path) -> None:
    first = write_lora(tmp_path / "a")
    assert adapter_difference(first, write_lora(tmp_path / "b")) < 1e-12
    assert 0 < adapter_difference(first, write_lora(tmp_path / "c", change=1e-6)) < ADAPTER_TOLERANCE
    assert adapter_difference(first, write_lora(tmp_path / "d", change=0.01)) > ADAPTER_TOLERANCE
    with pytest.raises(IntegrityError, match="other modules, ranks or shapes"):
        adapter_difference(first, write_lora(tmp_path / "e", module="model.layers.0.self_attn.v_proj"))
