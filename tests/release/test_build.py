"""The release folder: complete, about the judged bytes, and the same every time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from karma_electric.canonical import read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import sha256_file
from karma_electric.release.build import ReleaseInputs, build_release
from tests.release.release_files import PARAMS, input_files, make_inputs, write_gguf_header, write_json


@pytest.fixture
def inputs(tmp_path: Path) -> ReleaseInputs:
    return make_inputs(tmp_path / "project")


def build(inputs: ReleaseInputs, output: Path) -> Path:
    build_release(inputs, output, params=PARAMS)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_manifest_holds_every_file_with_its_hash_and_stage(inputs: ReleaseInputs, tmp_path: Path) -> None:
    release = build(inputs, tmp_path / "release")
    small = {"README.md", "LICENSE", "NOTICE", "CITATION.cff", "reproduce.json", "versions.yaml"}
    small |= {"Modelfile", "template", "system", "params", "gate.json", "gate.md", "axis_stats_v8.json"}
    small |= {f"metrics/{name}.json" for name in ("interpolate", "merge", "acap", "train/v6", "train/v8")}
    small |= {f"metrics/quantize/{kind}.json" for kind in inputs.gguf_files}
    small |= {f"sets/{name}.manifest.json" for name in inputs.set_sources}
    assert set(contents(release)) == small | {"manifest.json"}
    files = {
        f"adapters/{name}/{file.name}": file for name in inputs.adapters for file in inputs.adapters[name].iterdir()
    }
    files |= {path.name: path for path in (*inputs.gguf_files.values(), *inputs.axis_files)}
    files |= {name: release / name for name in small}
    files["evidence/gate.jsonl"] = inputs.evidence
    manifest = read_json_object(release / "manifest.json")
    assert [entry["path"] for entry in manifest["files"]] == sorted(files)
    for entry in manifest["files"]:
        file = files[entry["path"]]
        assert (entry["sha256"], entry["size"]) == (sha256_file(file), file.stat().st_size)
    stages = {entry["path"]: entry["stage"] for entry in manifest["files"]}
    assert stages["tiny-v8-Q4_K_M.gguf"] == "quantize@Q4_K_M"
    assert stages["adapters/v6/adapter_model.safetensors"] == "train@v6"
    assert stages["adapters/blend/manifest.json"] == "interpolate"
    assert stages["axis.safetensors"] == "extract-axis"
    assert stages["bodhisattva_axis_v8.pt"] == stages["axis_stats_v8.json"] == "calibrate-thresholds"
    assert stages["gate.json"] == stages["evidence/gate.jsonl"] == "gate"
    assert stages["README.md"] == stages["Modelfile"] == stages["reproduce.json"] == "release"
    assert stages["metrics/quantize/Q4_K_M.json"] == "quantize@Q4_K_M"
    assert stages["sets/v7.manifest.json"] == "export@v7"


def test_the_identity_says_what_was_built_from_what(inputs: ReleaseInputs, tmp_path: Path) -> None:
    identity = read_json_object(build(inputs, tmp_path / "release") / "manifest.json")["identity"]
    assert identity == {
        "name": "tiny",
        "version": "v8",
        "date": "2026-11-21",
        "base": {"repo": "org/small", "license": "apache-2.0", "source": "package", "sha256": "c" * 64},
        "merged_manifest_sha256": sha256_file(inputs.merged / "manifest.json"),
        "gguf": {kind: path.name for kind, path in inputs.gguf_files.items()},
        "axis": "bodhisattva_axis_v8.gguf",
        "judged": "tiny-v8-Q8_0.gguf",
        "adapters": ["v6", "v8"],
        "training_sets": {
            name: {"rows": 10 + number, "categories": 1, "root_sha256": str(number) * 64}
            for number, name in enumerate(inputs.set_sources)
        },
        "sets_in_no_weights": ["v9"],
    }


def test_the_same_inputs_give_the_same_bytes_wherever_they_lie(inputs: ReleaseInputs, tmp_path: Path) -> None:
    first = contents(build(inputs, tmp_path / "release"))
    assert contents(build(make_inputs(tmp_path / "other place"), tmp_path / "elsewhere" / "out")) == first
    assert contents(build(inputs, tmp_path / "release")) == first
    assert not any(str(tmp_path).encode() in data for data in first.values())


@pytest.mark.parametrize("kind", ["weights", "axis"])
def test_a_gate_about_other_bytes_is_refused(inputs: ReleaseInputs, tmp_path: Path, kind: str) -> None:
    if kind == "weights":
        changed = write_gguf_header(inputs.gguf_files["Q8_0"], seed=9)
    else:
        changed = inputs.axis_files[0]
        write_gguf_header(changed, seed=11)
    with pytest.raises(IntegrityError) as caught:
        build(inputs, tmp_path / "release")
    assert caught.value.exit_code == 6
    assert str(changed) in str(caught.value)
    assert "dvc repro gate" in str(caught.value)
    assert not (tmp_path / "release").exists()


def test_the_gate_must_be_about_the_judged_type(inputs: ReleaseInputs, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="Q4_K_M"):
        build(dataclasses.replace(inputs, judged_type="Q4_K_M"), tmp_path / "release")


@pytest.mark.parametrize("judged", [None, {}, "x", {"weights_sha256": None}])
def test_a_gate_that_names_no_files_is_refused(inputs: ReleaseInputs, tmp_path: Path, judged: object) -> None:
    gate = read_json_object(inputs.metrics["gate"])
    write_json(inputs.metrics["gate"], gate | {"judged": judged})
    with pytest.raises(IntegrityError, match="dvc repro gate"):
        build(inputs, tmp_path / "release")


def test_a_changed_adapter_is_refused(inputs: ReleaseInputs, tmp_path: Path) -> None:
    (inputs.adapters["v8"] / "adapter_model.safetensors").write_bytes(b"V8")
    with pytest.raises(IntegrityError, match=r"v8.adapter_model\.safetensors"):
        build(inputs, tmp_path / "release")


def test_each_missing_file_is_named_with_the_stage_that_makes_it(inputs: ReleaseInputs, tmp_path: Path) -> None:
    stages = set()
    for path in input_files(inputs):
        data = path.read_bytes()
        path.unlink()
        with pytest.raises(InputError, match="run `dvc repro ") as caught:
            build(inputs, tmp_path / "release")
        assert str(path) in str(caught.value)
        stages.add(str(caught.value).split("`")[1].removeprefix("dvc repro "))
        path.write_bytes(data)
    exports = {f"export@{name}" for name in inputs.set_sources}
    assert stages == exports | {
        *("base", "train@v6", "train@v8", "interpolate", "merge", "quantize@Q8_0", "quantize@Q4_K_M"),
        *("extract-axis", "calibrate-thresholds", "gate"),
    }
    assert not (tmp_path / "release").exists()


def test_a_release_that_fails_leaves_the_last_one_as_it_was(inputs: ReleaseInputs, tmp_path: Path) -> None:
    before = contents(build(inputs, tmp_path / "release"))
    inputs.gate_report.unlink()
    with pytest.raises(InputError, match="dvc repro gate"):
        build(inputs, tmp_path / "release")
    assert contents(tmp_path / "release") == before
    assert [path.name for path in tmp_path.iterdir() if path.name != "project"] == ["release"]


def test_a_model_without_a_chat_template_is_refused(inputs: ReleaseInputs, tmp_path: Path) -> None:
    judged = write_gguf_header(inputs.gguf_files["Q8_0"], chat_template=None)
    gate = read_json_object(inputs.metrics["gate"])
    gate["judged"]["weights_sha256"] = sha256_file(judged)
    write_json(inputs.metrics["gate"], gate)
    with pytest.raises(InputError, match=r"Q8_0\.gguf: has no chat template"):
        build(inputs, tmp_path / "release")


def test_the_card_states_the_numbers_of_its_inputs(inputs: ReleaseInputs, tmp_path: Path) -> None:
    card = (build(inputs, tmp_path / "release") / "README.md").read_text("utf-8")
    header = yaml.safe_load(card.split("---\n")[1])
    assert (header["license"], header["base_model"], header["language"]) == ("apache-2.0", "org/small", ["en", "cs"])
    for path in (*inputs.gguf_files.values(), inputs.axis_files[0]):
        assert path.name in card
        assert sha256_file(path) in card
    gate = read_json_object(inputs.metrics["gate"])
    assert f"verdict on these files is {gate['verdict']}." in card
    assert len(gate["checks"]) == 13
    for name, check in gate["checks"].items():
        assert f"| {name.replace('_', ' ')} | {check['passed']} of {check['n']} | " in card
    assert [result["metrics"][0]["value"] for result in header["model-index"][0]["results"]] == [
        check["rate"] for check in gate["checks"].values()
    ]
    assert "None" not in card
    assert "{{" not in card


def test_patches_that_are_in_no_weights_are_named(inputs: ReleaseInputs, tmp_path: Path) -> None:
    """v8 is layered on v7 on v6; v9 is trained by no adapter."""
    card = (build(inputs, tmp_path / "release") / "README.md").read_text("utf-8")
    named = [line for line in card.splitlines() if "in no weights" in line]
    assert len(named) == 1
    assert "v9" in named[0]
    only_v6 = {name: inputs.adapters[name] for name in ("v6", "blend")}
    fewer = dataclasses.replace(inputs, adapters=only_v6, train_metrics={"v6": inputs.train_metrics["v6"]})
    card = (build(fewer, tmp_path / "release") / "README.md").read_text("utf-8")
    named = [line for line in card.splitlines() if "in no weights" in line]
    assert len(named) == 3


def test_a_database_of_a_sets_name_is_no_set(inputs: ReleaseInputs, tmp_path: Path) -> None:
    sources = {"training": "data/training.db", "v6": "data/training.db", "v8": "data/sets/v6.jsonl"}
    manifests = {"training": inputs.set_manifests["v9"], **{n: inputs.set_manifests[n] for n in ("v6", "v8")}}
    changed = dataclasses.replace(inputs, set_sources=sources, set_manifests=manifests)
    card = (build(changed, tmp_path / "release") / "README.md").read_text("utf-8")
    assert [line for line in card.splitlines() if "in no weights" in line and "training" in line]


@pytest.mark.parametrize("missing", ["final_loss", "rows", "steps"])
def test_a_number_that_the_card_needs_and_lacks_is_an_error(
    inputs: ReleaseInputs, tmp_path: Path, missing: str
) -> None:
    metrics = read_json_object(inputs.train_metrics["v6"])
    del metrics[missing]
    write_json(inputs.train_metrics["v6"], metrics)
    with pytest.raises(InputError, match=f"metrics/train/v6.json: {missing} is missing, though the card states it"):
        build(inputs, tmp_path / "release")
    assert not (tmp_path / "release").exists()


def test_the_modelfile_is_about_the_judged_file(inputs: ReleaseInputs, tmp_path: Path) -> None:
    release = build(inputs, tmp_path / "release")
    text = (release / "Modelfile").read_text("utf-8")
    assert text.startswith("FROM ./tiny-v8-Q8_0.gguf\n")
    assert 'SYSTEM """You are kind."""' in text
    assert json.loads((release / "gate.json").read_text("utf-8")) == read_json_object(inputs.metrics["gate"])
    assert (release / "gate.md").read_bytes() == inputs.gate_report.read_bytes()
