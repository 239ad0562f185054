"""The release folder: card, manifest, Ollama files and the gate's report. It follows from its inputs alone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.reader import read_header
from karma_electric.integrity import (
    MANIFEST_NAME,
    atomic_directory,
    read_manifest,
    sha256_file,
    verify_manifest,
    write_text,
)
from karma_electric.parameters import read_yaml
from karma_electric.prompts import read_prompt
from karma_electric.release.card import render_card
from karma_electric.release.manifest import Artifact, describe_artifact, release_manifest, require_file
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

    Raises InputError for a missing file, naming the stage that makes it; IntegrityError when the gate judged other
    files than these, or an adapter is not as its manifest says.
    """
    artifacts = _large_artifacts(inputs)
    gate = _read(inputs.metrics["gate"], stage="gate")
    judged = inputs.gguf_files[inputs.judged_type]
    _check_judged(gate, artifacts, judged, "weights_sha256")
    _check_judged(gate, artifacts, _axis_gguf(inputs), "axis_sha256")
    _check_judged(gate, artifacts, inputs.evidence, "evidence_sha256")
    identity = _identity(inputs, params)
    ollama = modelfile(
        gguf_name=judged.name, chat_template=_chat_template(judged), persona_prompt=read_prompt(inputs.persona_prompt)
    )
    copies = {
        "gate.json": (inputs.metrics["gate"], "gate"),
        "gate.md": (inputs.gate_report, "gate"),
        inputs.axis_stats.name: (inputs.axis_stats, "calibrate-thresholds"),
    }
    with atomic_directory(output) as folder:
        card = render_card(_card_context(inputs, params, artifacts, identity, gate))
        write_text(folder / "README.md", card)
        write_text(folder / "Modelfile", ollama)
        for name, (source, stage) in copies.items():
            shutil.copyfile(require_file(source, stage=stage), folder / name)
        small = [
            describe_artifact(path, path=path.name, stage=copies.get(path.name, (path, "release"))[1])
            for path in sorted(folder.iterdir())
        ]
        manifest = release_manifest(identity, [*artifacts, *small])
        write_text(folder / MANIFEST_NAME, readable_json(manifest))


def _read(path: Path, *, stage: str) -> dict[str, Any]:
    return read_json_object(require_file(path, stage=stage))


def _axis_gguf(inputs: ReleaseInputs) -> Path:
    return next(path for path in inputs.axis_files if path.suffix == ".gguf")


def _check_judged(gate: dict[str, Any], artifacts: list[Artifact], file: Path, key: str) -> None:
    found = next(artifact.sha256 for artifact in artifacts if PurePosixPath(artifact.path).name == file.name)
    judged = gate["judged"].get(key) if isinstance(gate.get("judged"), dict) else None
    if found != judged:
        raise IntegrityError(
            f"{file}: sha256 is {found[:12]}…, the gate judged {str(judged)[:12]}…; run `dvc repro gate`"
        )


def _chat_template(gguf_file: Path) -> str:
    """The template that llama.cpp finds in the file."""
    template = read_header(gguf_file).metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise InputError(f"{gguf_file}: has no chat template; start from an instruction-tuned model")
    return template


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
        stage = "interpolate" if name == "blend" else f"train@{name}"
        manifest = require_file(folder / MANIFEST_NAME, stage=stage)
        artifacts.append(describe_artifact(manifest, path=f"adapters/{name}/{MANIFEST_NAME}", stage=stage))
        artifacts += [
            Artifact(f"adapters/{name}/{entry['path']}", entry["size"], entry["sha256"], stage)
            for entry in verify_manifest(folder)["files"]
        ]
    artifacts.append(describe_artifact(inputs.evidence, path="evidence/gate.jsonl", stage="gate"))
    return artifacts


def _identity(inputs: ReleaseInputs, params: ReleaseParams) -> dict[str, Any]:
    base = read_manifest(require_file(inputs.base_manifest, stage="base").parent)["identity"]
    return {
        "name": params.name,
        "version": params.version,
        "date": params.date.isoformat(),
        "base": {key: base[key] for key in ("repo", "license", "source", "revision", "sha256") if key in base},
        "merged_manifest_sha256": sha256_file(require_file(inputs.merged / MANIFEST_NAME, stage="merge")),
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
        "train": {name: _read(path, stage=f"train@{name}") for name, path in inputs.train_metrics.items()},
        "trained_sets": trained,
        "unused_sets": _sets_in_no_adapter(inputs.set_sources, trained),
        "interpolate": _read(inputs.metrics["interpolate"], stage="interpolate"),
        "acap": _read(inputs.metrics["acap"], stage="calibrate-thresholds"),
        "axis_stats": _read(inputs.axis_stats, stage="calibrate-thresholds"),
        "gate": gate,
        "judged_file": inputs.gguf_files[inputs.judged_type].name,
        "axis_file": _axis_gguf(inputs).name,
        "files": [artifact for artifact in artifacts if "/" not in artifact.path],
        "history": read_yaml(inputs.versions)["versions"],
    }


def _sets_in_no_adapter(sources: Mapping[str, str], trained: list[str]) -> list[str]:
    """The sets that neither are trained on nor have a trained set layered on them: their patches are in no weights."""
    used: set[str] = set()
    for name in trained:
        while name in sources and name not in used:
            used.add(name)
            source = PurePosixPath(sources[name])
            name = source.stem if source.suffix == ".jsonl" else ""
    return [name for name in sources if name not in used]


def _set_manifests(inputs: ReleaseInputs) -> dict[str, dict[str, Any]]:
    return {name: _read(path, stage=f"export@{name}") for name, path in inputs.set_manifests.items()}
