"""The axis GGUF: what is written is read, by us and by a loader that knows nothing of us; faulty files are refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from karma_electric.axis.files import load_axis
from karma_electric.axis.gguf_writer import write_axis_gguf
from karma_electric.capping.formula import unit
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import sha256_file
from karma_electric.safetensors_files import save_safetensors

IDENTITY: Mapping[str, str | float] = {"model": "test/tiny", "rule": "percentile", "firing_rate": 0.25}


def _write(path: Path, directions: Mapping[int, NDArray[np.float32]], taus: Mapping[int, float], alpha: float) -> Path:
    write_axis_gguf(path, directions, taus, alpha=alpha, model_type="llama", identity=IDENTITY)
    return path


def _directions(layers: tuple[int, ...] = (2, 11), size: int = 8) -> dict[int, NDArray[np.float32]]:
    dice = np.random.default_rng(4)
    return {layer: dice.normal(scale=7, size=size).astype(np.float32) for layer in layers}


FLOATS = st.floats(-1e6, 1e6, width=32)


@given(
    st.dictionaries(st.integers(1, 200), FLOATS, min_size=1, max_size=6),
    st.integers(1, 40),
    st.floats(0.0078125, 1, width=32),
    st.integers(0, 99),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, taus: dict[int, float], size: int, alpha: float, seed: int) -> None:
    dice = np.random.default_rng(seed)
    directions = {layer: dice.normal(scale=3, size=size).astype(np.float32) for layer in taus}
    path = _write(tmp_path / "axis.gguf", directions, taus, alpha)
    found = load_axis(path)
    assert found.layers == tuple(sorted(taus))
    assert found.taus == taus
    assert found.alpha == alpha
    assert found.hidden_size == size
    assert found.sha256 == sha256_file(path)
    for layer, direction in directions.items():
        assert np.array_equal(found.directions[layer], unit(direction))
    assert {name: found.identity[name] for name in IDENTITY} == IDENTITY
    assert found.cap().layers == found.layers


def test_a_loader_that_accepts_only_directions_reads_it(tmp_path: Path) -> None:
    """What the llama.cpp fork demands: nothing but direction.<n>, one-dimensional F32, thresholds of type float32."""
    directions = _directions()
    path = _write(tmp_path / "axis.gguf", directions, {2: -1.5, 11: 0.25}, 0.5)
    reader = gguf.GGUFReader(path)
    assert [tensor.name for tensor in reader.tensors] == ["direction.2", "direction.11"]
    for tensor, direction in zip(reader.tensors, directions.values(), strict=True):
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert tensor.shape.tolist() == [8]
        assert np.array_equal(tensor.data, direction)  # stored with its length
    for layer, tau in ((2, -1.5), (11, 0.25)):
        field = reader.get_field(f"acap.threshold.{layer}")
        assert field is not None
        assert field.types == [gguf.GGUFValueType.FLOAT32]
        assert field.contents() == tau
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_of_others_without_our_keys_is_read(tmp_path: Path) -> None:
    found = load_axis(_file(tmp_path))
    assert found.identity == {}
    assert found.alpha == 1
    assert found.taus == {2: -1.5, 11: -1.5}


def test_what_float32_cannot_hold_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "axis.gguf"
    for taus, alpha in (({2: float("nan"), 11: 0.0}, 1.0), ({2: 0.0, 11: 0.0}, 1e-60)):
        with pytest.raises(IntegrityError):
            _write(path, _directions(), taus, alpha)
    with pytest.raises(IntegrityError, match="norm 0"):
        _write(path, {2: np.zeros(8, np.float32)}, {2: 0.0}, 1.0)
    assert list(tmp_path.iterdir()) == []


Edit = Callable[[gguf.GGUFWriter, dict[str, NDArray[Any]], dict[str, tuple[float | str, gguf.GGUFValueType]]], None]
FLOAT32 = gguf.GGUFValueType.FLOAT32


def _file(tmp_path: Path, edit: Edit | None = None) -> Path:
    """An axis file written by hand, after `edit` changed the tensors or keys to come."""
    path = tmp_path / "axis.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    tensors: dict[str, NDArray[Any]] = {f"direction.{layer}": row for layer, row in _directions().items()}
    keys: dict[str, tuple[float | str, gguf.GGUFValueType]] = {
        f"acap.threshold.{layer}": (-1.5, FLOAT32) for layer in (2, 11)
    }
    if edit:
        edit(writer, tensors, keys)
    for key, (value, kind) in keys.items():
        writer.add_key_value(key, value, kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _set_tensor(name: str, values: Any, dtype: Any = np.float32, remove: str | None = "direction.2") -> Edit:
    def edit(_writer: Any, tensors: dict[str, NDArray[Any]], _keys: Any) -> None:
        if remove:
            del tensors[remove]
        tensors[name] = np.array(values, dtype)

    return edit


def _set_key(name: str, value: float | str, kind: gguf.GGUFValueType = FLOAT32) -> Edit:
    return lambda _writer, _tensors, keys: keys.update({name: (value, kind)})


def _drop(name: str) -> Edit:
    def edit(_writer: Any, tensors: dict[str, Any], keys: dict[str, Any]) -> None:
        tensors.pop(name, None)
        keys.pop(name, None)

    return edit


def _clear(_writer: Any, tensors: dict[str, Any], _keys: Any) -> None:
    tensors.clear()


ONES = [1.0] * 8
MALFORMED: dict[str, tuple[Edit, str]] = {
    "no tensors": (_clear, "no tensors"),
    "block 0": (_set_tensor("direction.0", ONES), "tensor 'direction.0'"),
    "leading zero": (_set_tensor("direction.02", ONES), "tensor 'direction.02'"),
    "negative layer": (_set_tensor("direction.-2", ONES), "tensor 'direction.-2'"),
    "layer too large": (_set_tensor("direction.5000", ONES), "a layer from 1 to 4095"),
    "foreign digits": (_set_tensor("direction.\u0662", ONES), "expected only direction"),
    "foreign tensor beside": (_set_tensor("output.weight", ONES, remove=None), "'output.weight'"),
    "F16": (_set_tensor("direction.2", ONES, np.float16), "is F16"),
    "F64": (_set_tensor("direction.2", ONES, np.float64), "is F64"),
    "two dimensions": (_set_tensor("direction.2", [ONES]), r"shape \(8, 1\)"),
    "another length": (_set_tensor("direction.2", ONES * 2), "expected one hidden size"),
    "zero": (_set_tensor("direction.2", [0.0] * 8), "direction.2: an axis of norm 0"),
    "tiny": (_set_tensor("direction.2", [1e-12] * 8), "direction.2: an axis of norm"),
    "NaN": (_set_tensor("direction.2", [np.nan, *ONES[1:]]), "direction.2: an axis of norm nan"),
    "infinite": (_set_tensor("direction.2", [np.inf, *ONES[1:]]), "direction.2: an axis of norm inf"),
    "no threshold": (_drop("acap.threshold.2"), "layer 2 has no threshold"),
    "no direction": (_drop("direction.11"), "layer 11 has no direction"),
    "threshold float64": (_set_key("acap.threshold.2", 1.0, gguf.GGUFValueType.FLOAT64), "of type float64"),
    "threshold text": (_set_key("acap.threshold.2", "1.0", gguf.GGUFValueType.STRING), "of type string"),
    "threshold integer": (_set_key("acap.threshold.2", 1, gguf.GGUFValueType.INT32), "of type int32"),
    "threshold NaN": (_set_key("acap.threshold.2", float("nan")), "expected a finite float32"),
    "threshold infinite": (_set_key("acap.threshold.2", float("inf")), "expected a finite float32"),
    "threshold too many": (_set_key("acap.threshold.3", 1.0), "layer 3 has no direction"),
    "threshold of block 0": (_set_key("acap.threshold.0", 1.0), "'acap.threshold.0'"),
    "another acap key": (_set_key("acap.alpha", 1.0), "'acap.alpha'"),
    "alpha 0": (_set_key("karma.alpha", 0.0), "karma.alpha is 0.0"),
    "alpha 2": (_set_key("karma.alpha", 2.0), "karma.alpha is 2.0"),
    "alpha NaN": (_set_key("karma.alpha", float("nan")), "karma.alpha is nan"),
    "alpha text": (_set_key("karma.alpha", "1", gguf.GGUFValueType.STRING), "karma.alpha is '1'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_axis_is_refused(tmp_path: Path, case: str) -> None:
    edit, fault = MALFORMED[case]
    path = _file(tmp_path, edit)
    with pytest.raises(IntegrityError, match=fault) as found:
        load_axis(path)
    assert str(path) in str(found.value)
    assert "\n" not in str(found.value)


def test_files_that_are_no_gguf_are_refused(tmp_path: Path) -> None:
    good = _file(tmp_path).read_bytes()
    path = tmp_path / "other.gguf"
    version = struct.pack("<I", 2)
    for data in (b"", b"hello", good[:100], good[:-1], b"GGML" + good[4:], good[:4] + version + good[8:]):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=r"other\.gguf"):
            load_axis(path)
    with pytest.raises(InputError):
        load_axis(tmp_path / "missing.gguf")
    save_safetensors(path, {})
    with pytest.raises(IntegrityError, match="no GGUF"):
        load_axis(path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma_electric.axis.files.MAX_AXIS_BYTES", 100)
    with pytest.raises(InputError, match="at most 100"):
        load_axis(_file(tmp_path))
