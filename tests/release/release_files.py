"""The inputs of a small release on disk: real manifests and a real GGUF header, invented numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from karma_electric.engines.protocol import EngineIdentity
from karma_electric.gate.evidence_file import evidence_bytes
from karma_electric.gate.report import gate_report
from karma_electric.gate.results import GateResult
from karma_electric.integrity import sha256_file, write_manifest
from karma_electric.release.build import ReleaseInputs, build_release
from karma_electric.release.finishing import finish_release
from karma_electric.release.judging_code import JUDGING_CODE, judging_code_sha256
from karma_electric.release.manifest import read_release_manifest
from karma_electric.release.params import ReleaseParams
from tests.gate.scripted_engine import ScriptedEngine, saying
from tests.gate.test_planted_failures import PARAMS as GATE_PARAMS
from tests.gate.test_planted_failures import gate, scoring

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARAMS = ReleaseParams.model_validate(
    {"name": "tiny", "version": "v8", "date": "2026-11-21", "title": "Tiny", "languages": ["en", "cs"]}
)

RECIPE: dict[str, Any] = {
    "sets": {"v6": "data/training.db"},
    "release": {"name": "tiny", "version": "v8", "title": "Tiny", "languages": ["en", "cs"]},
    "base": {"source": "folder", "path": "/somewhere/base"},
    "train": {"lora": {"rank": 16}},
    "gate": GATE_PARAMS.model_dump(mode="json"),
}
AXIS_STATS: dict[str, Any] = {
    "n_layers": 30,
    "rule": "percentile",
    "rule_value": 75,
    "n_fit_tokens": 576,
    "thresholds": {"20": {"tau": -67.28}, "26": {"tau": -175.017}},
    "firing_rates": {"persona": {"rate": 0.275174, "low": 0.154514, "high": 0.4, "positions": 1152, "answers": 6}},
}


def write_gguf_header(path: Path, chat_template: str | None = CHATML, seed: int = 0) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    writer.add_tensor("token_embd.weight", np.full(32, seed, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def adapter(folder: Path, seed: int) -> Path:
    write_safetensors(folder / "adapter_model.safetensors", seed)
    write_bytes(folder / "adapter_config.json", b"{}")
    write_manifest(folder, {"kind": "adapter"})
    return folder


@functools.cache
def _judged() -> GateResult:
    """A whole gate over an engine of fixed answers: every check, and evidence that can be judged again."""
    return gate(ScriptedEngine(scores=scoring(9, 3), answers=saying("No.")))


def gate_of(gguf_file: Path, axis: Path) -> GateResult:
    """The gate's result, about these files."""
    identity = EngineIdentity("llama.cpp", "b1", sha256_file(gguf_file), sha256_file(axis))
    return dataclasses.replace(_judged(), engine=identity)


def write_safetensors(path: Path, seed: int) -> Path:
    header = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'.ljust(56)
    return write_bytes(path, len(header).to_bytes(8, "little") + header + bytes([seed] * 4))


def make_inputs(folder: Path) -> ReleaseInputs:
    """A release of two quantisations, sets v6 to v9, and adapters of v6 and v8."""
    models, metrics, sets = folder / "models", folder / "metrics", folder / "sets"
    for name in ("base", "merged", "gguf", "axis"):
        (models / name).mkdir(parents=True)
    write_bytes(models / "base" / "config.json", b"{}")
    base = {"source": "package", "repo": "org/small", "sha256": "c" * 64, "license": "apache-2.0", "n_layers": 30}
    write_manifest(models / "base", base)
    write_bytes(models / "merged" / "model.safetensors", b"merged")
    write_manifest(models / "merged", base | {"kind": "merged"})
    gguf_files = {
        kind: write_gguf_header(models / "gguf" / f"tiny-v8-{kind}.gguf", seed=number)
        for number, kind in enumerate(("Q8_0", "Q4_K_M"))
    }
    axis_files = (
        write_gguf_header(models / "axis" / "bodhisattva_axis_v8.gguf", seed=7),
        write_bytes(models / "axis" / "bodhisattva_axis_v8.pt", b"a pickle"),
        write_safetensors(models / "axis" / "axis.safetensors", 8),
        write_safetensors(models / "axis" / "projections.safetensors", 9),
    )
    result = gate_of(gguf_files["Q8_0"], axis_files[0])
    hashes = {"persona": "1" * 64, "evaluator": "2" * 64}
    evidence = write_bytes(models / "evidence" / "gate.jsonl", evidence_bytes(result, GATE_PARAMS, hashes))
    (folder / "gate.md").write_text(gate_report(result), "utf-8")
    sources = {"v6": "data/training.db", "v7": "data/sets/v6.jsonl", "v8": "data/sets/v7.jsonl", "v9": "data/v8.jsonl"}
    manifests = {
        name: write_json(
            sets / f"{name}.manifest.json",
            {"rows": 10 + number, "root_sha256": str(number) * 64, "categories": {"ethics": 10 + number}},
        )
        for number, name in enumerate(sources)
    }
    train = {"rows": 64, "tokens": 9000, "steps": 16, "final_loss": 2.5}
    acap = {"alpha": 1.0, "first_layer": 20, "last_layer": 26, "firing_rate_persona": 0.25}
    return ReleaseInputs(
        base_manifest=models / "base" / "manifest.json",
        merged=models / "merged",
        adapters={n: adapter(models / "adapters" / n, seed) for seed, n in enumerate(("v6", "v8", "blend"))},
        gguf_files=gguf_files,
        judged_type="Q8_0",
        axis_files=axis_files,
        axis_stats=write_json(models / "axis" / "axis_stats_v8.json", AXIS_STATS),
        set_manifests=manifests,
        set_sources=sources,
        train_metrics={name: write_json(metrics / "train" / f"{name}.json", train) for name in ("v6", "v8")},
        metrics={
            "interpolate": write_json(
                metrics / "interpolate.json", {"method": "exact", "alpha": 0.3, "factor_rule_error": 0.55}
            ),
            "merge": write_json(metrics / "merge.json", {}),
            "acap": write_json(metrics / "acap.json", acap),
            "gate": write_json(metrics / "gate.json", result.as_metrics(evidence_sha256=sha256_file(evidence))),
        },
        quantize_metrics={
            kind: write_json(
                metrics / "quantize" / f"{kind}.json",
                {"positions": 98 + number, "relative_error": 0.0459 + number, "top1_agreement": 0.9286 - number / 10},
            )
            for number, kind in enumerate(gguf_files)
        },
        gate_report=folder / "gate.md",
        evidence=evidence,
        versions=write_versions(folder / "versions.yaml"),
        persona_prompt=write_bytes(folder / "persona.txt", b"You are kind.\n"),
        constraints=write_bytes(folder / "constraints.txt", b"gguf==0.19.0\nnumpy==2.4.6\n"),
        recipe=RECIPE,
    )


def write_versions(path: Path) -> Path:
    entry = "  - {version: v1, examples: 912, loss: 0.96, redteam_rate: null, change: first fine-tune}\n"
    path.write_text("versions:\n" + entry, "utf-8")
    return path


def input_files(inputs: ReleaseInputs) -> Iterator[Path]:
    """Every file that a release is made of, but for those inside the adapters' folders and the prompt."""
    yield inputs.base_manifest
    yield inputs.merged / "manifest.json"
    yield from (folder / "manifest.json" for folder in inputs.adapters.values())
    yield from inputs.gguf_files.values()
    yield from inputs.axis_files
    yield inputs.axis_stats
    yield from inputs.set_manifests.values()
    yield from inputs.train_metrics.values()
    yield from (path for name, path in inputs.metrics.items() if name != "merge")
    yield inputs.gate_report
    yield inputs.evidence


def stage(inputs: ReleaseInputs, folder: Path) -> Path:
    """The release with its large files beside it and a provenance, as it is before it is finished."""
    build_release(inputs, folder, params=PARAMS)
    found = {path.name: path for path in (*inputs.gguf_files.values(), *inputs.axis_files)}
    found["evidence/gate.jsonl"] = inputs.evidence
    for name, adapter_folder in inputs.adapters.items():
        found |= {f"adapters/{name}/{path.name}": path for path in adapter_folder.iterdir()}
    for entry in read_release_manifest(folder)["files"]:
        if entry["path"] in found:
            (folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found[entry["path"]], folder / entry["path"])
    provenance = {"commit": "a" * 40, "dvc_lock_sha256": "b" * 64, "override": None}
    write_json(folder / "provenance.json", provenance | {JUDGING_CODE: judging_code_sha256()})
    return folder


def make_key(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private and a public key, by openssl."""
    folder.mkdir(parents=True, exist_ok=True)
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    for command in (make, ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]):
        subprocess.run(command, check=True, capture_output=True)
    return private, public


def signed_release(folder: Path) -> tuple[Path, Path]:
    """A finished, signed release and its public key."""
    private, public = make_key(folder / "keys")
    release = stage(make_inputs(folder / "project"), folder / "release")
    finish_release(release, private_key=private)
    return release, public
