"""The gate on a real model: a tiny random Llama in llama.cpp, with a real axis file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from karma_electric.axis.gguf_writer import write_axis_gguf
from karma_electric.canonical import readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gate.params import GateParams
from karma_electric.gate.run import changed_findings, check_same_verdict, replay_gate, run_gate
from karma_electric.integrity import sha256_file
from karma_electric.suites.items import read_suites
from tests.gate.conftest import Judged, write_axis
from tests.gate.test_planted_failures import CHECKS, PARAMS
from tests.suites.suite_files import REPOSITORY, SHIPPED_SUITES, good_suites, write_suites

PROMPTS = REPOSITORY / "data" / "prompts"


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """llama.cpp's threads wait for each other in a loop: on a busy machine two are many times slower than one."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def small(**changes: Any) -> GateParams:
    return PARAMS.model_copy(update={"items_per_check": 1, "answer_tokens": 8, **changes})


def run(
    judged: Judged,
    folder: Path,
    *,
    suites: Path = SHIPPED_SUITES,
    params: GateParams | None = None,
    store: Path | None = None,
    lines: list[str] | None = None,
) -> str:
    """Run the gate as the stage does; the metrics as the stage writes them."""
    result = run_gate(
        judged.model,
        judged.axis,
        suites=suites,
        persona_prompt=PROMPTS / "persona.txt",
        evaluator_prompt=PROMPTS / "evaluator.txt",
        evidence=folder / "gate.jsonl",
        report_markdown=folder / "gate.md",
        params=params or small(),
        report=(lines if lines is not None else []).append,
        store=store,
    )
    return readable_json(result.metrics)


def test_the_same_files_give_the_same_bytes_of_evidence_report_and_metrics(judged: Judged, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    metrics = run(judged, first)
    assert run(judged, second) == metrics
    for name in ("gate.jsonl", "gate.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    found = json.loads(metrics)
    assert found["judged"]["weights_sha256"] == sha256_file(judged.model)
    assert found["judged"]["axis_sha256"] == sha256_file(judged.axis)
    assert found["judged"]["engine"] == "llama.cpp"
    assert found["verdict"] in ("fail", "inconclusive")
    assert {name: check["n"] for name, check in found["checks"].items()} == dict.fromkeys(CHECKS, 1) | {"format": 4}
    header, *rows = [json.loads(line) for line in (first / "gate.jsonl").read_text("utf-8").splitlines()]
    assert header["rows"] == len(rows) == len(CHECKS) + 3
    assert found["judged"]["evidence_sha256"] == sha256_file(first / "gate.jsonl")
    assert list(dict.fromkeys(row["check"] for row in rows)) == CHECKS
    for row in rows:
        if "positions" in row["answers"]:
            assert (row["answers"]["positions"] > 0) == row["check"].endswith("_capped")
    answers = {row["check"]: row["answers"].get("texts") for row in rows}
    assert answers["redteam_capped"] != answers["redteam_uncapped"]  # a ceiling of 0 moves a random model


def test_a_run_from_kept_answers_asks_nothing_and_writes_the_same_bytes(judged: Judged, tmp_path: Path) -> None:
    store = tmp_path / "answers.db"
    cold_lines: list[str] = []
    warm_lines: list[str] = []
    cold = run(judged, tmp_path / "cold", store=store, lines=cold_lines)
    warm = run(judged, tmp_path / "warm", store=store, lines=warm_lines)
    assert warm == cold == run(judged, tmp_path / "none")
    for name in ("gate.jsonl", "gate.md"):
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "cold" / name).read_bytes()
        assert (tmp_path / "warm" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()
    assert not cold_lines[-1].startswith("0 questions asked")
    assert warm_lines[-1].startswith("0 questions asked")


def test_another_axis_asks_only_the_capped_questions_again(judged: Judged, tmp_path: Path) -> None:
    store = tmp_path / "answers.db"
    run(judged, tmp_path / "first", store=store)
    axis = write_axis(tmp_path / "axis.gguf", 0.5)
    lines: list[str] = []
    run(Judged(judged.model, axis), tmp_path / "second", store=store, lines=lines)
    turns = sum(len(item.turns) for item in read_suites(SHIPPED_SUITES).subset(1).redteam)
    assert lines[-1].startswith(f"{turns + 1 + 1} questions asked")  # red team, one boundary, one choice


def test_kept_answers_are_judged_again_to_the_same_metrics(judged: Judged, tmp_path: Path) -> None:
    metrics = run(judged, tmp_path)
    again = replay_gate(tmp_path / "gate.jsonl")
    assert readable_json(again.metrics) == metrics
    assert changed_findings(tmp_path / "gate.jsonl", again) == []
    check_same_verdict(json.loads(metrics), again)
    with pytest.raises(IntegrityError, match="the gate's metrics say 'pass'"):
        check_same_verdict(json.loads(metrics) | {"verdict": "pass"}, again)


def test_a_missing_suite_is_said_before_the_model_is_looked_at(tmp_path: Path) -> None:
    suites = write_suites(tmp_path / "suites", good_suites())
    (suites / "redteam.jsonl").unlink()
    nothing = Judged(tmp_path / "no-model.gguf", tmp_path / "no-axis.gguf")
    with pytest.raises(InputError, match=r"redteam\.jsonl: cannot be read"):
        run(nothing, tmp_path, suites=suites)
    assert not (tmp_path / "gate.jsonl").exists()


def test_a_missing_axis_is_said_before_the_model_is_loaded(judged: Judged, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no-axis\.gguf"):
        run(Judged(judged.model, tmp_path / "no-axis.gguf"), tmp_path)


def test_an_axis_of_another_model_is_an_error_and_leaves_no_files(judged: Judged, tmp_path: Path) -> None:
    axis = tmp_path / "axis.gguf"
    write_axis_gguf(
        axis, {2: np.ones(128, np.float32)}, {2: 0.0}, alpha=1.0, model_type="llama", identity={"model": "other"}
    )
    with pytest.raises((InputError, IntegrityError), match="128"):
        run(Judged(judged.model, axis), tmp_path / "out")
    assert not (tmp_path / "out").exists()
