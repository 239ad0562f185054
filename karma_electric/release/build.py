"""The release folder: card, manifest, Ollama files and the gate's report. It follows from its inputs alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import IntegrityError
from karma_electric.integrity import MANIFEST_NAME, atomic_directory, sha256_file, verify_manifest, write_text
from karma_electric.parameters import read_yaml
from karma_electric.prompts import read_prompt
from karma_electric.release.card import render_card
from karma_electric.release.manifest import Artifact, describe_artifact, release_manifest
from karma_electric.release.ollama import modelfile
from karma_electric.release.params import ReleaseParams


@dataclass(frozen=True)
class ReleaseInputs:
    """The files that a release is made of, and the numbers that its card states."""

    base_manifest: Path
    merged: Path
    adapters: Mapping[str, Path]  # set name, or `blend` -> folder
    gguf_files: Mapping[str, Path]  # type -> file
    judged_type: str
    axis_files: tuple[Path, ...]  # GGUF, .pt, axis, projections
    axis_stats: Path
    set_manifests: Mapping[str, Path]  # set name -> manifest of row hashes
    set_sources: Mapping[str, str]  # set name -> what it is layered on, as in the recipe
    train_metrics: Mapping[str, Path]  # set name -> metrics
    metrics: Mapping[str, Path]  # interpolate, merge, acap, gate -> metrics
    gate_report: Path
    evidence: Path
    versions: Path
    persona_prompt: Path


def build_release(inputs: ReleaseInputs, output: Path, *, params: ReleaseParams) -> None:
    """Write the folder `output`: README.md, manifest.json, Modelfile, gate.json, gate.md and the axis statistics.

    Raises IntegrityError when the gate judged other files than these.
    """
    gate = read_json_object(inputs.metrics["gate"])
    judged = inputs.gguf_files[inputs.judged_type]
    axis = next(path for path in inputs.axis_files if path.suffix == ".gguf")
    _check_judged(gate, judged, "weights_sha256")
    _check_judged(gate, axis, "axis_sha256")
    chat_template = (inputs.merged / "chat_template.jinja").read_text("utf-8")
    prompt = read_prompt(inputs.persona_prompt)
    artifacts = _large_artifacts(inputs)
    identity = _identity(inputs, params)
    with atomic_directory(output) as folder:
        card = render_card(_card_context(inputs, params, artifacts, identity, gate))
        write_text(folder / "README.md", card)
        write_text(
            folder / "Modelfile", modelfile(gguf_name=judged.name, chat_template=chat_template, persona_prompt=prompt)
        )
        shutil.copyfile(inputs.metrics["gate"], folder / "gate.json")
        shutil.copyfile(inputs.gate_report, folder / "gate.md")
        shutil.copyfile(inputs.axis_stats, folder / inputs.axis_stats.name)
        made = {inputs.axis_stats.name: "calibrate-thresholds", "gate.json": "gate", "gate.md": "gate"}
        small = [
            describe_artifact(path, path=path.name, stage=made.get(path.name, "release"))
            for path in sorted(folder.iterdir())
        ]
        manifest = release_manifest(identity, [*artifacts, *small])
        write_text(folder / MANIFEST_NAME, readable_json(manifest))


def _check_judged(gate: dict[str, Any], file: Path, key: str) -> None:
    found, judged = sha256_file(file), gate["judged"][key]
    if found != judged:
        raise IntegrityError(f"{file}: sha256 is {found[:12]}…, the gate judged {judged[:12]}…; run `dvc repro gate`")


def _large_artifacts(inputs: ReleaseInputs) -> list[Artifact]:
    """What is published beside the folder's own files, and is not copied into it."""
    artifacts = [
        describe_artifact(path, path=path.name, stage=f"quantize@{gguf_type}")
        for gguf_type, path in inputs.gguf_files.items()
    ]
    for path in inputs.axis_files:
        stage = "extract-axis" if path.suffix == ".safetensors" else "calibrate-thresholds"
        artifacts.append(describe_artifact(path, path=path.name, stage=stage))
    for name, folder in inputs.adapters.items():
        verify_manifest(folder)
        stage = "interpolate" if name == "blend" else f"train@{name}"
        artifacts += [
            describe_artifact(path, path=f"adapters/{name}/{path.name}", stage=stage)
            for path in sorted(folder.iterdir())
        ]
    artifacts.append(describe_artifact(inputs.evidence, path="evidence/gate.jsonl", stage="gate"))
    return artifacts


def _identity(inputs: ReleaseInputs, params: ReleaseParams) -> dict[str, Any]:
    base = read_json_object(inputs.base_manifest)["identity"]
    return {
        "name": params.name,
        "version": params.version,
        "date": params.date.isoformat(),
        "base": {key: base[key] for key in ("repo", "license", "source") if key in base}
        | {key: base[key] for key in ("revision", "sha256") if key in base},
        "merged_manifest_sha256": sha256_file(inputs.merged / MANIFEST_NAME),
        "training_sets": {
            name: {"rows": manifest["rows"], "root_sha256": manifest["root_sha256"]}
            for name, manifest in _set_manifests(inputs).items()
        },
    }


def _card_context(
    inputs: ReleaseInputs,
    params: ReleaseParams,
    artifacts: list[Artifact],
    identity: dict[str, Any],
    gate: dict[str, Any],
) -> dict[str, Any]:
    trained = [name for name in inputs.adapters if name != "blend"]
    sets = _set_manifests(inputs)
    return {
        "release": params,
        "base": identity["base"],
        "sets": sets,
        "train": {name: read_json_object(path) for name, path in inputs.train_metrics.items()},
        "trained_sets": trained,
        "unused_sets": _sets_in_no_adapter(inputs.set_sources, trained),
        "interpolate": read_json_object(inputs.metrics["interpolate"]),
        "acap": read_json_object(inputs.metrics["acap"]),
        "axis_stats": read_json_object(inputs.axis_stats),
        "gate": gate,
        "judged_file": inputs.gguf_files[inputs.judged_type].name,
        "axis_file": next(path.name for path in inputs.axis_files if path.suffix == ".gguf"),
        "files": [artifact for artifact in artifacts if "/" not in artifact.path],
        "history": read_yaml(inputs.versions)["versions"],
    }


def _sets_in_no_adapter(sources: Mapping[str, str], trained: list[str]) -> list[str]:
    """The sets that neither are trained on nor have a trained set layered on them: their patches are in no weights."""
    used: set[str] = set()
    for name in trained:
        while name in sources:
            used.add(name)
            name = PurePosixPath(sources[name]).stem
    return [name for name in sources if name not in used]


def _set_manifests(inputs: ReleaseInputs) -> dict[str, dict[str, Any]]:
    return {name: read_json_object(path) for name, path in inputs.set_manifests.items()}
