"""The release folder: card, manifest, recipe, Ollama files, licence and the gate's report.

It follows from its inputs alone. The large artifacts are named in the manifest and not copied.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.fingerprint.packages import read_constraints
from karma_electric.gguf_files.reader import read_header
from karma_electric.integrity import (
    MANIFEST_NAME,
    atomic_directory,
    read_manifest,
    sha256_file,
    verify_manifest,
    write_text,
)
from karma_electric.prompts import read_prompt
from karma_electric.release.card import CARD_NAME, render_card
from karma_electric.release.citation import citation
from karma_electric.release.licenses import license_files
from karma_electric.release.manifest import (
    Artifact,
    describe_artifact,
    manifest_with,
    release_manifest,
    require_file,
    write_release_manifest,
)
from karma_electric.release.ollama import ollama_files
from karma_electric.release.params import ReleaseParams
from karma_electric.release.reproduce import reproduction


@dataclass(frozen=True)
class ReleaseInputs:
    """The files that a release is made of, and the recipe."""

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
    quantize_metrics: Mapping[str, Path]  # type -> metrics
    metrics: Mapping[str, Path]  # interpolate, merge, acap, gate -> metrics
    gate_report: Path
    evidence: Path
    versions: Path
    persona_prompt: Path
    constraints: Path  # the pinned packages
    recipe: Mapping[str, Any]  # the whole of it


def build_release(inputs: ReleaseInputs, output: Path, *, params: ReleaseParams) -> None:
    """Write the folder `output`: README.md (the card), manifest.json, and every small file that the card is made from.

    Raises InputError for a missing file, naming the stage that makes it, and for a card with a number of no file;
    IntegrityError when the gate judged other files than these, or an adapter is not as its manifest says.
    """
    artifacts = _large_artifacts(inputs)
    gate = _read(inputs.metrics["gate"], stage="gate")
    judged = inputs.gguf_files[inputs.judged_type]
    _check_judged(gate, artifacts, judged, "weights_sha256")
    _check_judged(gate, artifacts, _axis_gguf(inputs), "axis_sha256")
    _check_judged(gate, artifacts, inputs.evidence, "evidence_sha256")
    identity = _identity(inputs, params)
    texts = _own_texts(inputs, params, identity)
    copies = _copies(inputs)
    with atomic_directory(output) as folder:
        for name, text in texts.items():
            write_text(folder / name, text)
        for name, (source, stage) in copies.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(require_file(source, stage=stage), folder / name)
        stages = dict.fromkeys(texts, "release") | {name: stage for name, (_, stage) in copies.items()}
        small = [describe_artifact(folder / name, path=name, stage=stage) for name, stage in stages.items()]
        manifest = release_manifest(identity, [*artifacts, *small])
        write_text(folder / CARD_NAME, render_card(folder, manifest).text)
        card = describe_artifact(folder / CARD_NAME, path=CARD_NAME, stage="release")
        write_release_manifest(folder, manifest_with(manifest, [card]))


def _own_texts(inputs: ReleaseInputs, params: ReleaseParams, identity: dict[str, Any]) -> dict[str, str]:
    """The files that this stage writes, but for card and manifest: name -> text."""
    judged = inputs.gguf_files[inputs.judged_type]
    chat_template, eos_token = _chat_template(judged)
    base = identity["base"]
    return {
        **ollama_files(
            gguf_name=judged.name,
            chat_template=chat_template,
            eos_token=eos_token,
            persona_prompt=read_prompt(inputs.persona_prompt),
        ),
        **license_files(str(base.get("license")), title=params.title, base_repo=str(base.get("repo"))),
        "CITATION.cff": citation(params, base_repo=str(base.get("repo")), license_name=str(base.get("license"))),
        "reproduce.json": readable_json(
            reproduction(
                inputs.recipe,
                python=f"{sys.version_info.major}.{sys.version_info.minor}",
                packages=read_constraints(inputs.constraints),
                base=base,
                training_sets=identity["training_sets"],
            )
        ),
    }


def _copies(inputs: ReleaseInputs) -> dict[str, tuple[Path, str]]:
    """Path in the folder -> the file that is copied to it, and the stage that made it."""
    stages = {"interpolate": "interpolate", "merge": "merge", "acap": "calibrate-thresholds"}
    return {
        "gate.json": (inputs.metrics["gate"], "gate"),
        "gate.md": (inputs.gate_report, "gate"),
        inputs.axis_stats.name: (inputs.axis_stats, "calibrate-thresholds"),
        "versions.yaml": (inputs.versions, "release"),
        **{f"metrics/{name}.json": (inputs.metrics[name], stage) for name, stage in stages.items()},
        **{f"metrics/train/{name}.json": (path, f"train@{name}") for name, path in inputs.train_metrics.items()},
        **{
            f"metrics/quantize/{name}.json": (path, f"quantize@{name}")
            for name, path in inputs.quantize_metrics.items()
        },
        **{f"sets/{name}.manifest.json": (path, f"export@{name}") for name, path in inputs.set_manifests.items()},
    }


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


def _chat_template(gguf_file: Path) -> tuple[str, str]:
    """The template that llama.cpp finds in the file, and its end-of-text token, empty where the file names none."""
    metadata = read_header(gguf_file).metadata
    template = metadata.get("tokenizer.chat_template")
    if not isinstance(template, str):
        raise InputError(f"{gguf_file}: has no chat template; start from an instruction-tuned model")
    tokens, eos = metadata.get("tokenizer.ggml.tokens", ()), metadata.get("tokenizer.ggml.eos_token_id")
    if isinstance(eos, int) and 0 <= eos < len(tokens):
        return template, str(tokens[eos])
    if "eos_token" in template:
        raise InputError(f"{gguf_file}: its chat template writes an end-of-text token, and the file names none")
    return template, ""


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
    trained = [name for name in inputs.adapters if name != "blend"]
    keys = ("repo", "license", "source", "revision", "sha256")
    return {
        "name": params.name,
        "version": params.version,
        "date": params.date.isoformat(),
        "base": {key: base[key] for key in keys if key in base},
        "merged_manifest_sha256": sha256_file(require_file(inputs.merged / MANIFEST_NAME, stage="merge")),
        "gguf": {gguf_type: path.name for gguf_type, path in inputs.gguf_files.items()},
        "axis": _axis_gguf(inputs).name,
        "judged": inputs.gguf_files[inputs.judged_type].name,
        "adapters": trained,
        "training_sets": {
            name: {
                "rows": manifest["rows"],
                "categories": len(manifest["categories"]),
                "root_sha256": manifest["root_sha256"],
            }
            for name, manifest in _set_manifests(inputs).items()
        },
        "sets_in_no_weights": _sets_in_no_adapter(inputs.set_sources, trained),
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
