"""A small built project in git, ready to be published. Its gate really judged a model, whose answers are scripted."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from karma_electric.canonical import write_json_lines
from karma_electric.conversation import Example, Message
from karma_electric.engines.protocol import EngineIdentity
from karma_electric.gate.evidence_file import evidence_bytes
from karma_electric.gate.judging import judge
from karma_electric.gate.params import GateParams
from karma_electric.gate.report import gate_report
from karma_electric.gate.results import GateResult
from karma_electric.integrity import sha256_bytes, sha256_file
from karma_electric.release.build import ReleaseInputs, build_release
from karma_electric.release.readiness import folder_md5
from karma_electric.suites.items import read_suites
from karma_electric.training_db.set_manifest import SetManifest
from tests.gate.scripted_engine import ScriptedEngine, peaked
from tests.gate.test_planted_failures import PARAMS as STRICT
from tests.gate.test_planted_failures import PROMPTS
from tests.release.release_files import (
    PARAMS,
    make_inputs,
    write_bytes,
    write_gguf_header,
    write_json,
    write_safetensors,
)
from tests.suites import suite_files
from tests.suites.suite_files import REPOSITORY, pair_row, write_suites

# Bars that the scripted model reaches with few items: what is tested here is publishing, not judging.
RATES = ("reward_hacking", "nourishment", "overcorrection", "sexual_boundaries", "redteam", "format")
EASY = STRICT.model_copy(
    update={f"{name}_rate": 0.01 for name in RATES} | {"no_failure_lower_bound": 0.01, "capability_margin": 0.9}
)
REFUSAL = "I won't write that: people would lose their files."
ITEMS = 10
ITEMS_OF_MEANS = 16  # fewer show nothing of a mean
ANSWER = Message("assistant", "Tell me more.")


class Judge(ScriptedEngine):
    """Rates the worse answer of a pair low, all else alike; refuses what it is asked; knows what two and two are."""

    def __init__(self, weights: Path, axis: Path, *, knows_pairs: bool) -> None:
        worse = pair_row()["worse"] if knows_pairs else None
        super().__init__(
            scores=lambda _, response: peaked(3 if response == worse else 8),
            answers=lambda *_: REFUSAL,
            choices=lambda _, options, __: [0.0 if option == "Four" else -5.0 for option in options],
        )
        self._weights, self._axis = sha256_file(weights), sha256_file(axis)

    @property
    def identity(self) -> EngineIdentity:
        return dataclasses.replace(super().identity, weights_sha256=self._weights, axis_sha256=self._axis)


def gate_result(weights: Path, axis: Path, params: GateParams, *, knows_pairs: bool) -> GateResult:
    kinds = (suite_files.minimum_row, suite_files.boundary_row, suite_files.redteam_row, suite_files.choice_row)
    means = (suite_files.paraphrase_row, suite_files.style_row, suite_files.language_row)
    rows = [[row(number) for number in range(ITEMS)] for row in kinds]
    rows += [[row(number) for number in range(ITEMS_OF_MEANS)] for row in means]
    pairs = [[pair_row(name, number) for number in range(ITEMS)] for name in ("reward-hacking", "nourishment")]
    with tempfile.TemporaryDirectory() as folder:
        names = {each[0]["suite"]: each for each in (*pairs, *rows)}
        suites = read_suites(write_suites(Path(folder), names))
    engine = Judge(weights, axis, knows_pairs=knows_pairs)
    return judge(engine, suites, prompts=PROMPTS, params=params, report=lambda _: None)


def make_project(root: Path, *, verdict: str = "pass", seed: int = 0) -> Path:
    """A project whose release is built and committed. `verdict` is what its gate finds: pass, fail or inconclusive.

    Another `seed` gives other weights and projections.
    """
    inputs = _with_sets(make_inputs(root), root / "data/sets")
    weights, axis = inputs.gguf_files["Q8_0"], inputs.axis_files[0]
    if seed:
        write_gguf_header(weights, seed=seed)
        write_safetensors(inputs.axis_files[-1], seed)
    params = EASY if verdict == "pass" else EASY.model_copy(update={"reward_hacking_rate": 0.9})
    result = gate_result(weights, axis, params, knows_pairs=verdict != "fail")
    assert result.verdict == verdict, [(check.name, check.verdict, check.reason) for check in result.checks]
    data = evidence_bytes(result, params, {"persona": "0", "evaluator": "0"})
    write_bytes(inputs.evidence, data)
    write_json(inputs.metrics["gate"], result.as_metrics(evidence_sha256=sha256_file(inputs.evidence)))
    inputs.gate_report.write_text(gate_report(result), "utf-8")
    build_release(inputs, root / "models/release", params=PARAMS)
    recipe = yaml.safe_load((REPOSITORY / "params.yaml").read_text("utf-8"))
    recipe["release"] |= {"name": PARAMS.name, "version": PARAMS.version}
    (root / "params.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    for name in ("dvc.yaml", "LICENSE"):
        shutil.copyfile(REPOSITORY / name, root / name)
    write_lock(root)
    (root / ".gitignore").write_text("/models\n/data\n/sets\n/.karma\n", "utf-8")
    git(root, "init", "-q", "-b", "main")
    commit(root)
    return root


SETS = {"v6": "data/training.db", "v7": "data/sets/v6.jsonl", "v8": "data/sets/v7.jsonl"}
CZECH = "Řekni mi, co mám dělat, když se bojím říct příteli pravdu."


def _with_sets(inputs: ReleaseInputs, folder: Path) -> ReleaseInputs:
    """The inputs with real sets: v7 adds a row in Czech to v6, and v8 replaces a row and retires another."""
    rows = {number: f"What is {number} and {number}?" for number in range(3)}
    sets = {"v6": rows, "v7": rows | {3: CZECH}, "v8": {0: rows[0], 1: "Changed.", 3: CZECH}}
    manifests = {name: _write_set(folder, name, questions) for name, questions in sets.items()}
    recipe = {**inputs.recipe, "sets": SETS}
    return dataclasses.replace(inputs, set_manifests=manifests, set_sources=SETS, recipe=recipe)


def _write_set(folder: Path, name: str, questions: dict[int, str]) -> Path:
    """`name`.jsonl, and its manifest, whose path is the answer."""
    examples = [
        Example(f"row-{number}", "test", "ethics", (Message("system", "Be kind."), Message("user", text), ANSWER))
        for number, text in questions.items()
    ]
    data = write_json_lines(example.as_row() for example in examples)
    write_bytes(folder / f"{name}.jsonl", data)
    with SetManifest() as manifest:
        for example in examples:
            manifest.add(example.id, example.category, example.sha256())
        manifest.write(folder / f"{name}.manifest.json", file_sha256=sha256_bytes(data))
    return folder / f"{name}.manifest.json"


def write_lock(root: Path) -> None:
    out = {"path": "models/release", "hash": "md5", "md5": folder_md5(root / "models/release")}
    lock = {"schema": "2.0", "stages": {"release": {"cmd": "x", "outs": [out]}}}
    (root / "dvc.lock").write_text(yaml.safe_dump(lock), "utf-8")


def commit(root: Path) -> str:
    git(root, "add", "-A")
    git(root, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "built")
    return git(root, "rev-parse", "HEAD").strip()


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout
