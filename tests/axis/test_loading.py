"""Every form of axis file becomes the same cap; what is for another model, or unsound, is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from karma_electric.axis.gguf_writer import write_axis_gguf
from karma_electric.axis.loading import load_cap
from karma_electric.axis.measurements import AxisMeasurement, write_axis
from karma_electric.axis.model_facts import ModelFacts, model_facts
from karma_electric.capping.formula import unit
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import sha256_file, write_manifest
from tests.gguf_files.raw_gguf import F32, RawGguf, tensor

LAYERS, SIZE, SHA = 8, 16, "a" * 64
MODEL = ModelFacts("model", SIZE, LAYERS, SHA)
AXIS = np.random.default_rng(5).normal(size=(LAYERS, SIZE)).astype(np.float32)
TAUS = {5: -1.5, 6: 0.25}


def write_axis_file(path: Path, model_sha256: str = SHA) -> Path:
    identity: dict[str, str | float] = {"model": "tiny", "model_sha256": model_sha256, "firing_rate": 0.25}
    write_axis_gguf(
        path, {layer: AXIS[layer] for layer in TAUS}, TAUS, alpha=0.5, model_type="llama", identity=identity
    )
    return path


def write_old_axis_file(path: Path) -> Path:
    """Directions, and nothing else."""
    rows = [tensor(f"direction.{layer}", (SIZE,), F32, 64 * place) for place, layer in enumerate(TAUS)]
    path.write_bytes(RawGguf(tensors=rows, data=b"".join(AXIS[layer].tobytes() for layer in TAUS)).build())
    return path


def save(path: Path, value: Any) -> Path:
    stream = io.BytesIO()
    torch.save(value, stream)
    path.write_bytes(stream.getvalue())
    return path


def test_a_gguf_with_thresholds(tmp_path: Path) -> None:
    path = write_axis_file(tmp_path / "axis.gguf")
    found = load_cap(path, MODEL)
    assert (found.cap.layers, found.cap.taus, found.cap.alpha) == ((5, 6), TAUS, 0.5)
    assert np.array_equal(found.cap.directions[5], unit(AXIS[5]))
    assert found.sha256 == sha256_file(path)
    assert (found.notes, found.overrides, found.firing_rate) == ((), {}, 0.25)


def test_a_threshold_that_is_given_wins_and_says_so(tmp_path: Path) -> None:
    path = write_axis_file(tmp_path / "axis.gguf")
    found = load_cap(path, MODEL, threshold=2.1, layers=(6, 6), alpha=1)
    assert (found.cap.taus, found.cap.alpha) == ({6: -2.1}, 1)
    assert found.notes == ("the threshold 2.1 (tau = -2.1) replaces the file's own for each layer",)
    assert found.overrides == {"threshold": 2.1, "layers": [6, 6], "alpha": 1}
    assert found.firing_rate is None  # of another cap


@pytest.mark.parametrize("threshold", [0.0, -2.1, float("nan"), float("inf")])
def test_a_threshold_must_be_above_zero(tmp_path: Path, threshold: float) -> None:
    path = write_axis_file(tmp_path / "axis.gguf")
    with pytest.raises(InputError, match=r"expected a finite T > 0: it stands for the ceiling tau = -T"):
        load_cap(path, MODEL, threshold=threshold)


def test_an_old_gguf_takes_a_threshold_and_needs_one(tmp_path: Path) -> None:
    path = write_old_axis_file(tmp_path / "axis.gguf")
    found = load_cap(path, MODEL, threshold=2.1)
    assert (found.cap.taus, found.cap.alpha) == ({5: -2.1, 6: -2.1}, 1)
    assert found.notes == (f"{path} does not say which weights it was made from",)
    with pytest.raises(IntegrityError, match=r"has no key acap\.threshold\.<layer>.*--acap-threshold T"):
        load_cap(path, MODEL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pt_with_thresholds(tmp_path: Path, dtype: torch.dtype) -> None:
    axis = torch.from_numpy(AXIS).to(dtype)
    path = save(tmp_path / "axis.pt", {"axis": axis, "thresholds": TAUS})
    found = load_cap(path, MODEL)
    assert (found.cap.taus, found.cap.alpha) == (TAUS, 1)
    assert np.array_equal(found.cap.directions[6], unit(axis[6].float().numpy()))


@pytest.mark.parametrize("name", ["axis_stats.json", "axis_stats_v8.json", "elsewhere.json"])
def test_a_bare_pt_takes_the_thresholds_of_its_stats(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / "bodhisattva_axis_v8.pt", torch.from_numpy(AXIS))
    stats = {"n_layers": LAYERS, "hidden_size": SIZE, "alpha": 0.5, "model_sha256": SHA}
    stats["thresholds"] = {str(layer): {"tau": tau, "mean": 0.0} for layer, tau in TAUS.items()}
    (tmp_path / name).write_text(json.dumps(stats))
    found = load_cap(path, MODEL, stats=tmp_path / name if name == "elsewhere.json" else None)
    assert (found.cap.taus, found.cap.alpha) == (TAUS, 0.5)
    assert found.notes == (f"thresholds from {tmp_path / name}",)
    with pytest.raises(InputError, match=r"was made from the weights aaaaaaaaaaaa….*, or --force"):
        load_cap(path, ModelFacts("other", SIZE, LAYERS, "b" * 64), stats=tmp_path / name)


def test_a_bare_pt_or_safetensors_takes_a_threshold_at_the_default_depth(tmp_path: Path) -> None:
    bare = save(tmp_path / "axis.pt", torch.from_numpy(AXIS))
    write_axis(tmp_path / "axis.safetensors", AxisMeasurement(AXIS, AXIS[:, 0].copy(), {"model_sha256": SHA}))
    for path in (bare, tmp_path / "axis.safetensors"):
        assert load_cap(path, MODEL, threshold=1).cap.taus == {6: -1}
        assert load_cap(path, MODEL, threshold=1, layers=(2, 4)).cap.layers == (2, 3, 4)
        with pytest.raises(InputError, match="has no thresholds; give one with it"):
            load_cap(path, MODEL)


def test_the_axis_of_other_weights_takes_force(tmp_path: Path) -> None:
    path = write_axis_file(tmp_path / "axis.gguf")
    for other in (ModelFacts("other", SIZE, LAYERS, "b" * 64), ModelFacts("silent", SIZE, LAYERS, None)):
        with pytest.raises(InputError, match=rf"was made from the weights aaaaaaaaaaaa…, {other.where} .*, or --force"):
            load_cap(path, other)
        assert load_cap(path, other, force=True).notes[0].startswith(f"forced: {path}: was made from")
    for wrong in (ModelFacts("wide", SIZE + 1, LAYERS, SHA), ModelFacts("shallow", SIZE, 6, SHA)):
        with pytest.raises(InputError, match=r"use the axis of this model|expected first to last within"):
            load_cap(path, wrong, force=True)


def test_a_model_says_what_it_was_made_from(tiny_llama: Path, tmp_path: Path) -> None:
    from shutil import copytree

    folder = Path(copytree(tiny_llama, tmp_path / "model"))
    (folder / "manifest.json").unlink(missing_ok=True)
    assert model_facts(folder) == ModelFacts(str(folder), 256, 4, None)
    write_gguf(folder, tmp_path / "silent.gguf", gguf_type="F16", name="tiny")
    assert model_facts(tmp_path / "silent.gguf").source_sha256 is None
    write_manifest(folder, {"repo": "tiny"})
    write_gguf(folder, tmp_path / "model.gguf", gguf_type="F16", name="tiny")
    sha256 = sha256_file(folder / "manifest.json")
    assert model_facts(folder) == ModelFacts(str(folder), 256, 4, sha256)
    assert model_facts(tmp_path / "model.gguf") == ModelFacts(str(tmp_path / "model.gguf"), 256, 4, sha256)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((0, 6), "block 0 cannot be capped"),
        ((6, 5), "expected first to last"),
        ((5, 8), "within 1 to 7"),
        ((4, 6), r"has no direction with a threshold for layer 4; it has \[5, 6\]"),
    ],
)
def test_a_range_that_cannot_be(tmp_path: Path, layers: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_cap(write_axis_file(tmp_path / "axis.gguf"), MODEL, layers=layers)


GOOD = torch.from_numpy(AXIS)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (GOOD.double(), "float64 of shape"),
        (GOOD.half(), "float16 of shape"),
        (GOOD[0], r"of shape \(16,\)"),
        (GOOD.to_sparse(), "expected float32 or bfloat16"),
        (GOOD * float("nan"), "not finite"),
        ([1, 2], "holds a list"),
        ({"direction": GOOD}, "holds a NoneType"),
        ({"axis": GOOD, "thresholds": [1.0]}, "expected {layer: tau}"),
        ({"axis": GOOD, "thresholds": {"x": 1.0}}, "'x' is no layer"),
        ({"axis": GOOD, "thresholds": {5: "low"}}, "expected one finite number"),
        ({"axis": GOOD, "thresholds": {5: float("inf")}}, "expected one finite number"),
        ({"axis": GOOD, "thresholds": {5: 1.0, "5": 2.0}}, "one finite number for each layer"),
        ({"axis": GOOD, "thresholds": {0: 1.0}}, "expected layers 1 to 7"),
        ({"axis": GOOD, "thresholds": {8: 1.0}}, "expected layers 1 to 7"),
        ({"axis": GOOD * 0, "thresholds": {5: 1.0}}, "layer 5: an axis of norm 0"),
        ({"axis": GOOD, "thresholds": TAUS, "alpha": 2}, "alpha is 2"),
        (print, "no file of tensors alone"),
    ],
)
def test_a_pt_of_another_form_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        load_cap(save(tmp_path / "axis.pt", value), MODEL)


def test_a_pt_for_another_depth_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "axis.pt", {"axis": GOOD, "thresholds": TAUS})
    with pytest.raises(InputError, match="is for a model of 8 layers with hidden size 16, deep has 9 layers"):
        load_cap(path, ModelFacts("deep", SIZE, 9, None), force=True)


def test_a_damaged_pt_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path / "axis.pt", {"axis": GOOD, "thresholds": TAUS}).read_bytes()
    path = tmp_path / "damaged.pt"
    for data in (b"", b"\x80\x02]q\x00.", whole[: len(whole) // 2], whole[:-1], b"PK\x05\x06" + bytes(18)):
        path.write_bytes(data)
        with pytest.raises(IntegrityError, match=str(path)):
            load_cap(path, MODEL)
    with pytest.raises(InputError, match="no such file"):
        load_cap(tmp_path / "none.pt", MODEL)
    with pytest.raises(InputError, match="expected an axis file"):
        load_cap(tmp_path / "axis.bin", MODEL)
