"""`karma gate`: its exit code is the verdict's, and what it says is what the files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from karma_electric.gate.evidence_file import evidence_bytes
from karma_electric.gate.results import GateResult
from tests.cli.running import ROOT, karma, one_line_of
from tests.gate.conftest import Judged
from tests.gate.scripted_engine import ScriptedEngine
from tests.gate.test_planted_failures import CHECKS, PARAMS, gate, perfect, scoring


def evidence(path: Path, result: GateResult) -> Path:
    path.write_bytes(evidence_bytes(result, PARAMS, {"persona": "p", "evaluator": "e"}))
    return path


def test_a_gate_that_passed_ends_with_zero(tmp_path: Path) -> None:
    suites, engine = perfect()
    file = evidence(tmp_path / "gate.jsonl", gate(engine, suites=suites))
    done = karma("gate", "replay", file, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "verdict: pass"
    assert [line.split()[0] for line in done.stdout.splitlines()[:-1]] == CHECKS
    assert json.loads(karma("gate", "replay", file, "--json", folder=tmp_path).stdout)["verdict"] == "pass"


def test_a_gate_that_failed_ends_with_three(tmp_path: Path) -> None:
    file = evidence(tmp_path / "gate.jsonl", gate(ScriptedEngine(scores=scoring(3, 9))))
    done = karma("gate", "replay", file, folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (3, "verdict: fail")


def test_a_gate_that_cannot_tell_ends_with_four(tmp_path: Path) -> None:
    suites, engine = perfect()
    few = suites.model_copy(update={"nourishment": suites.nourishment[:6]})
    done = karma("gate", "replay", evidence(tmp_path / "gate.jsonl", gate(engine, suites=few)), folder=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (4, "verdict: inconclusive")


def test_other_bars_can_be_given(tmp_path: Path) -> None:
    file = evidence(tmp_path / "gate.jsonl", gate(ScriptedEngine(scores=scoring(9, 3))))
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    recipe["gate"]["reward_hacking_rate"] = 0.01
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(recipe))
    done = karma("gate", "replay", file, "--params", "params.yaml", "--json", folder=tmp_path)
    assert json.loads(done.stdout)["checks"]["reward_hacking"]["verdict"] == "pass"


def test_evidence_that_is_not_whole_ends_with_six(tmp_path: Path) -> None:
    file = evidence(tmp_path / "gate.jsonl", gate(ScriptedEngine()))
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    assert "rows, expected" in one_line_of(karma("gate", "replay", file, folder=tmp_path), 6)
    assert "gate.jsonl" in one_line_of(karma("gate", "replay", "no/gate.jsonl", folder=tmp_path), 1)


def test_two_runs_are_compared(tmp_path: Path) -> None:
    before = evidence(tmp_path / "before.jsonl", gate(ScriptedEngine(scores=scoring(9, 3))))
    after = evidence(tmp_path / "after.jsonl", gate(ScriptedEngine(scores=scoring(3, 9))))
    rows = json.loads(karma("gate", "compare", before, after, "--json", folder=tmp_path).stdout)
    found = {row["check"]: row["finding"] for row in rows}
    assert list(found) == CHECKS
    assert found["reward_hacking"] == "worse"
    words = karma("gate", "compare", before, after, folder=tmp_path).stdout.splitlines()
    assert len(words) == len(CHECKS)


def test_the_built_files_are_judged_and_answers_are_used_again(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMA_HOME", str(tmp_path / "home"))
    arguments = ("gate", "run", judged.model, "--acap", judged.axis, "--items", "1", "--output", tmp_path / "out")
    first = karma(*arguments, folder=ROOT)
    assert first.returncode in (3, 4), first.stderr
    kept = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(kept) == {"gate.json", "gate.md", "evidence.jsonl"}
    second = karma(*arguments, folder=ROOT)
    assert second.stdout == first.stdout
    assert "0 questions asked" in second.stderr
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == kept
    replayed = karma("gate", "replay", tmp_path / "out" / "evidence.jsonl", folder=tmp_path)
    assert (replayed.stdout, replayed.returncode) == (first.stdout, first.returncode)


def test_a_missing_model_is_said_in_one_line(tmp_path: Path) -> None:
    assert "name a model" in one_line_of(karma("gate", "run", folder=tmp_path), 1)
