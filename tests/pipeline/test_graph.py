"""What reruns after which change, on the real graph."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest

from karma_electric.fingerprint.packages import WITHOUT_INFLUENCE, normalized
from stages.fingerprint import STAGES
from tests.pipeline.project import Project

pytestmark = pytest.mark.pipeline

AFTER_V8 = {
    "export@v8",
    "train@v8",
    "interpolate",
    "merge",
    "quantize@Q8_0",
    "extract-axis",
    "calibrate-thresholds",
    "gate",
    "release",
}


def test_a_second_repro_has_nothing_to_do(project: Project) -> None:
    assert project.repro() == set()


def test_one_patch_row_of_v8_reaches_what_follows_v8_and_nothing_else(project: Project) -> None:
    _change_first_row(project.folder / "data/patches/v8/boundaries.jsonl")
    assert project.repro() == AFTER_V8


def test_a_comment_in_every_library_file_reruns_only_the_fingerprint(project: Project) -> None:
    for path in (project.folder / "karma_electric").rglob("*.py"):
        path.write_text(path.read_text("utf-8") + "\n# a comment\n")
    assert project.repro() == {"fingerprint"}


def test_a_change_of_code_reruns_the_stages_that_can_reach_it(project: Project) -> None:
    path = project.folder / "karma_electric/release/ollama.py"
    path.write_text(path.read_text("utf-8").replace("PARAMETER temperature 0", "PARAMETER temperature 0.5"))
    assert project.repro() == {"fingerprint", "release"}


def test_an_export_with_the_same_bytes_stops_the_rebuild(project: Project) -> None:
    path = project.folder / "data/patches/v8/boundaries.jsonl"
    path.write_text("\n".join(reversed(path.read_text("utf-8").splitlines())) + "\n")
    assert project.repro() == {"export@v8"}


def test_a_gate_bound_retrains_nothing(project: Project) -> None:
    project.edit_recipe(gate={"redteam_rate": 0.8})
    assert project.repro() == {"gate", "release"}


def test_adding_a_quantisation_does_not_rerun_its_sibling(project: Project) -> None:
    project.edit_recipe(quantize={"types": ["Q8_0", "Q4_K_M"]})
    assert project.repro() == {"quantize@Q4_K_M", "release"}


def test_make_repro_refuses_a_wrong_recipe_before_dvc_starts(project: Project) -> None:
    before = project.outputs()
    project.edit_recipe(interpolate={"alpha": "abc"})
    result = project.run("karma", "check", ok=False)  # the first thing that `make repro` does after the set-up
    assert result.returncode == 1
    assert result.stderr.startswith("error: params.yaml: interpolate.alpha: found 'abc', expected a valid number")
    assert project.outputs() == before


def test_a_wrong_recipe_under_dvc_is_one_line_and_loses_nothing(project: Project) -> None:
    """DVC removes the outputs of a stage before it starts it; they are in its cache and in git."""
    before = project.outputs()
    project.edit_recipe(interpolate={"alpha": "abc"})
    result = project.run("dvc", "repro", ok=False)
    assert result.returncode == 255
    assert "error: params.yaml: interpolate.alpha: found 'abc', expected a valid number" in result.stderr
    assert "Traceback" not in result.stderr
    after = project.outputs()
    assert all(after[path] == before[path] for path in after)
    assert {path for path in before if path not in after} <= {
        path for path in before if path.startswith(("models/adapters/blend/", "metrics/interpolate.json"))
    }
    project.run("git", "checkout", "--", ".")
    project.run("dvc", "checkout")
    assert project.outputs() == before


def test_a_typo_in_another_section_stops_the_first_stage_that_would_run(project: Project) -> None:
    _change_first_row(project.folder / "data/patches/v8/boundaries.jsonl")
    project.edit_recipe(gate={"redteam_rat": 0.8})
    result = project.run("dvc", "repro", ok=False)
    assert "params.yaml: gate.redteam_rat: unknown key" in result.stderr
    assert "Running stage 'train@v8'" not in result.stdout


def test_two_builds_in_two_folders_are_the_same_bytes(built: Project, built_elsewhere: Project) -> None:
    assert built_elsewhere.outputs() == built.outputs()


def test_every_loaded_package_is_in_the_fingerprint_of_its_stage(built_elsewhere: Project) -> None:
    providers = metadata.packages_distributions()
    recorded = list((built_elsewhere.folder.parents[1] / "modules").glob("*.json"))
    assert {path.name.split("-")[0] for path in recorded} == {f"stages.{stage}" for stage in (*STAGES, "fingerprint")}
    for path in recorded:
        stage = path.name.split("-")[0].removeprefix("stages.")
        if stage == "fingerprint":
            continue
        loaded = {normalized(name) for top in json.loads(path.read_text()) for name in providers.get(top, [])}
        fingerprint = json.loads((built_elsewhere.folder / f"fingerprints/{stage}.json").read_text())
        undeclared = loaded - set(fingerprint["packages"]) - WITHOUT_INFLUENCE - {"karma-electric"}
        assert not undeclared, f"{stage} loads {sorted(undeclared)}: add them to LOADED_BY_OTHERS or WITHOUT_INFLUENCE"


def test_the_gate_judged_the_files_that_are_released(built: Project) -> None:
    gate = json.loads((built.folder / "metrics/gate.json").read_text("utf-8"))
    manifest = json.loads((built.folder / "models/release/manifest.json").read_text("utf-8"))
    hashes = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    assert gate["judged"]["weights_sha256"] == hashes["tiny-v8-Q8_0.gguf"]
    assert gate["judged"]["axis_sha256"] == hashes["bodhisattva_axis_v8.gguf"]
    assert gate["verdict"] in ("fail", "inconclusive"), "a subset never passes"


def _change_first_row(path: Path) -> None:
    first, *rest = path.read_text("utf-8").splitlines()
    row = json.loads(first)
    row["conversations"][-1]["content"] += " And drink some water."
    path.write_text("\n".join([json.dumps(row, ensure_ascii=False), *rest]) + "\n", "utf-8")
