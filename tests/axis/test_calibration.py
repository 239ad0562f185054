"""The stage calibrate-thresholds: everything it writes follows from the projections, and is read back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from karma_electric.axis.calibration import calibrate
from karma_electric.axis.files import load_axis
from karma_electric.axis.measurements import (
    AnswerProjections,
    AxisMeasurement,
    read_axis,
    read_projections,
    write_axis,
    write_projections,
)
from karma_electric.axis.params import AcapParams
from karma_electric.axis.prompts import KINDS, SPLITS, texts_sha256
from karma_electric.capping.formula import unit
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import sha256_file
from tests.axis.conftest import ACAP, AXIS, Measured
from tests.axis.prompt_files import PromptFiles

DATE = "2026-11-21"
NAMES = ("axis.gguf", "axis.pt", "axis_stats.json", "histogram.json")


@dataclass(frozen=True)
class Written:
    """The files that a calibration wrote, and what it returned."""

    gguf: Path
    pt: Path
    stats: dict[str, Any]
    histogram: list[dict[str, Any]]
    metrics: dict[str, float]


def _calibrate(measured: Measured, output: Path, **changes: Any) -> Written:
    gguf, pt, stats, histogram = (output / name for name in NAMES)
    metrics = calibrate(
        measured.axis,
        measured.projections,
        output_gguf=gguf,
        output_pt=pt,
        output_stats=stats,
        plot_histogram=histogram,
        params=AcapParams(**(ACAP.model_dump() | changes)),
        release_date=DATE,
        persona_prompt=measured.prompts.persona,
        generic_prompts=measured.prompts.generic,
    )
    return Written(gguf, pt, json.loads(stats.read_text()), json.loads(histogram.read_text()), metrics)


def test_gguf_torch_file_and_statistics_agree(measured: Measured, tmp_path: Path) -> None:
    written = _calibrate(measured, tmp_path, alpha=0.5)
    axis = read_axis(measured.axis)
    found = load_axis(written.gguf)
    loaded = torch.load(written.pt, weights_only=True)
    assert found.layers == (1, 2, 3)
    assert found.alpha == written.stats["alpha"] == 0.5
    assert loaded["thresholds"] == found.taus
    assert found.taus == {int(layer): entry["tau"] for layer, entry in written.stats["thresholds"].items()}
    assert loaded["axis"].dtype == torch.float32
    assert np.array_equal(loaded["axis"].numpy(), axis.axis)
    for layer in found.layers:
        assert np.array_equal(found.directions[layer], unit(axis.axis[layer]))
        assert written.metrics[f"tau_{layer}"] == pytest.approx(found.taus[layer], rel=1e-5)
    assert found.identity["model_sha256"] == axis.identity["model_sha256"]
    assert found.identity["axis_sha256"] == sha256_file(measured.axis)
    assert found.identity["rule"] == "percentile"
    assert found.identity["firing_rate"] == pytest.approx(written.metrics["firing_rate_all"])
    assert found.identity["firing_rate.persona"] == pytest.approx(written.metrics["firing_rate_persona"])


def test_the_statistics_have_every_key_of_the_format(measured: Measured, tmp_path: Path) -> None:
    stats = _calibrate(measured, tmp_path).stats
    assert stats["model"] == "test/tiny"
    assert (stats["n_samples"], stats["n_layers"], stats["hidden_size"]) == (6, 4, 256)
    assert stats["capping_layers"] == [1, 2, 3]
    assert stats["threshold_percentile"] == 75
    assert list(stats["axis_norms"]) == list(stats["axis_standard_errors"]) == ["0", "1", "2", "3"]
    for entry in stats["thresholds"].values():
        assert list(entry) == ["tau", "mean", "std", "min", "max", "p25", "p50", "p75"]
        assert entry["tau"] == pytest.approx(entry["p75"], rel=1e-5)
    assert stats["bodhisattva_prompt"] == measured.prompts.persona.read_text().strip()
    assert len(stats["generic_prompts"]) == 3
    assert stats["timestamp"] == DATE
    assert set(stats["firing_rates"]) == {*KINDS, "all"}


def test_the_rule_fires_on_its_share_of_the_fitted_tokens(measured: Measured, tmp_path: Path) -> None:
    projections = read_projections(measured.projections, measured.axis, 4)
    values = projections["persona", "fit"].values
    for q in (25, 75):
        for layer, tau in load_axis(_calibrate(measured, tmp_path, percentile=q).gguf).taus.items():
            assert abs((values[:, layer] > np.float32(tau)).sum() - len(values) * (100 - q) / 100) <= 1


def test_the_global_threshold_is_minus_t_in_every_layer(measured: Measured, tmp_path: Path) -> None:
    written = _calibrate(measured, tmp_path, threshold=2.1)
    assert set(load_axis(written.gguf).taus.values()) == {float(np.float32(-2.1))}
    assert written.stats["threshold_percentile"] is None
    assert (written.stats["rule"], written.stats["rule_value"]) == ("global", 2.1)
    sigma = _calibrate(measured, tmp_path, rule="mean_k_sigma", k_sigma=1.5)
    assert sigma.stats["threshold_percentile"] is None
    entry = sigma.stats["thresholds"]["2"]
    assert entry["tau"] == pytest.approx(entry["mean"] - 1.5 * entry["std"], rel=1e-4, abs=1e-4)
    assert sigma.stats["n_fit_tokens"] == 4 * written.stats["n_fit_tokens"]


def _synthetic(folder: Path, prompts: PromptFiles) -> Measured:
    """Projections that are known: the persona's run 0..99 in every layer, held out every kind has its own share."""
    persona = texts_sha256([prompts.persona.read_text().strip()])
    generic = texts_sha256(json.loads(line)["prompt"] for line in prompts.generic.read_text().splitlines())
    identity = {"model": "m", "model_sha256": "0" * 64, "model_type": "llama", "n_samples": 3}
    identity["prompts"] = {"persona": persona, "generic": generic}
    axis = np.eye(4, 8, dtype=np.float32) * np.array([[1], [2], [3], [4]], np.float32)
    path = folder / "axis.safetensors"
    write_axis(path, AxisMeasurement(axis, np.full(4, 0.1, np.float32), identity))
    found = {
        (kind, split): AnswerProjections(
            np.tile(np.arange(100, dtype=np.float32)[:, None] + 5 * KINDS.index(kind) * SPLITS.index(split), 4),
            np.repeat(np.arange(10, dtype=np.int32), 10),
            10,
        )
        for kind in KINDS
        for split in SPLITS
    }
    write_projections(folder / "projections.safetensors", found, path, {})
    return Measured(prompts, path, folder / "projections.safetensors", {})


def test_firing_rates_on_known_projections(prompt_files: PromptFiles, tmp_path: Path) -> None:
    written = _calibrate(_synthetic(tmp_path, prompt_files), tmp_path, percentile=75)
    assert set(load_axis(written.gguf).taus.values()) == {74.0}  # 25 of 0..99 lie above
    rates = {kind: written.metrics[f"firing_rate_{kind}"] for kind in (*KINDS, "all")}
    assert rates == {"persona": 0.25, "neutral": 0.3, "coding": 0.35, "adversarial": 0.4, "all": 0.325}
    assert written.metrics["firing_rate_persona_positions"] == 300
    assert written.metrics["firing_rate_all_positions"] == 1200
    assert written.metrics["firing_rate_all_answers"] == 40
    assert written.metrics["firing_rate_persona_low"] < 0.1  # ten answers, of which two or three fire throughout
    assert written.metrics["firing_rate_persona_high"] > 0.45
    assert written.stats["axis_norms"] == {"0": 1.0, "1": 2.0, "2": 3.0, "3": 4.0}
    counts = {kind: sum(row["count"] for row in written.histogram if row["kind"] == kind) for kind in KINDS}
    assert counts == dict.fromkeys(KINDS, 200)
    assert len({row["bin"] for row in written.histogram}) == 32


def test_default_layers_are_used_when_the_recipe_names_none(measured: Measured, tmp_path: Path) -> None:
    assert load_axis(_calibrate(measured, tmp_path, layers=None).gguf).layers == (2,)
    with pytest.raises(InputError, match=r"found \[1, 4\], the model has the layers 0 to 3"):
        _calibrate(measured, tmp_path / "none", layers=(1, 4))
    assert not (tmp_path / "none").exists()


def test_other_prompts_than_those_measured_are_refused(measured: Measured, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("You are someone else.")
    with pytest.raises(IntegrityError, match="another persona prompt"):
        _calibrate(replace(measured, prompts=replace(measured.prompts, persona=other)), tmp_path)
    rows = measured.prompts.generic.read_text().splitlines(keepends=True)
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(rows[:2]))
    with pytest.raises(IntegrityError, match="another generic prompt"):
        _calibrate(replace(measured, prompts=replace(measured.prompts, generic=fewer)), tmp_path)


_SCRIPT = """
import sys
from pathlib import Path
from karma_electric.axis.calibration import calibrate
from karma_electric.axis.extraction import extract_axis
from karma_electric.axis.params import AcapParams, AxisParams
model, contrast, generic, persona, calibration, axis_params, acap_params = sys.argv[1:]
axis, projections = Path("axis.safetensors"), Path("projections.safetensors")
extract_axis(
    Path(model), contrast_prompts=Path(contrast), generic_prompts=Path(generic), persona_prompt=Path(persona),
    calibration_prompts=Path(calibration), training_set=None, output_axis=axis, output_projections=projections,
    params=AxisParams.model_validate_json(axis_params),
)
calibrate(
    axis, projections, output_gguf=Path("axis.gguf"), output_pt=Path("axis.pt"), output_stats=Path("axis_stats.json"),
    plot_histogram=Path("histogram.json"), params=AcapParams.model_validate_json(acap_params),
    release_date="2026-11-21", persona_prompt=Path(persona), generic_prompts=Path(generic),
)
"""


def test_two_processes_write_the_same_bytes(tiny_llama: Path, measured: Measured, tmp_path: Path) -> None:
    """Here, and in a process of another hash seed, time zone and folder."""
    here, there = tmp_path / "here", tmp_path / "there"
    _calibrate(measured, here)
    shutil.copyfile(measured.axis, here / "axis.safetensors")
    shutil.copyfile(measured.projections, here / "projections.safetensors")
    there.mkdir()
    files = measured.prompts
    arguments = [tiny_llama, files.contrast, files.generic, files.persona, files.calibration]
    environment = {"PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments, AXIS.model_dump_json(), ACAP.model_dump_json()],
        cwd=there,
        env=os.environ | environment,
        check=True,
    )
    hashes = [{path.name: sha256_file(path) for path in folder.iterdir()} for folder in (here, there)]
    assert len(hashes[0]) == 6
    assert hashes[0] == hashes[1]
