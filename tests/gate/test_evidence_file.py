"""Evidence on disk: whole or refused, and judged again by today's rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from karma_electric.errors import InputError, IntegrityError
from karma_electric.gate.evidence_file import evidence_bytes, read_evidence
from karma_electric.gate.judging import judge_again
from karma_electric.gate.results import GateResult
from karma_electric.gate.run import replay_gate
from tests.gate.scripted_engine import IDENTITY, ScriptedEngine, saying
from tests.gate.test_planted_failures import CHECKS, PARAMS, gate, scoring
from tests.suites.test_conduct import SCENE


@pytest.fixture(scope="module")
def result() -> GateResult:
    return gate(ScriptedEngine(scores=scoring(9, 3), answers=saying("No.")))


@pytest.fixture
def file(result: GateResult, tmp_path: Path) -> Path:
    path = tmp_path / "gate.jsonl"
    path.write_bytes(evidence_bytes(result, PARAMS, {"persona": "p", "evaluator": "e"}))
    return path


def test_what_is_read_is_what_was_written(result: GateResult, file: Path) -> None:
    found = read_evidence(file)
    assert found.identity == IDENTITY
    assert found.params == PARAMS
    assert found.rows == [json.loads(json.dumps(row.as_row())) for row in result.evidence]
    assert judge_again(found.rows, found.identity, params=found.params).checks == result.checks


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def test_half_written_evidence_is_refused(file: Path) -> None:
    lines = lines_of(file)
    for kept in (1, 2, len(lines) // 2, len(lines) - 1):
        file.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(IntegrityError, match=f"expected {len(lines) - 1}"):
            read_evidence(file)
    file.write_bytes(b"".join(lines)[:-40])
    with pytest.raises((InputError, IntegrityError)):
        read_evidence(file)
    file.write_bytes(b"")
    with pytest.raises(IntegrityError, match="holds nothing"):
        read_evidence(file)


def test_a_row_that_was_changed_moved_or_doubled_is_refused(file: Path) -> None:
    lines = lines_of(file)
    changed = lines[1].replace(b'"passed":true', b'"passed":false')
    assert changed != lines[1]
    for spoilt in (
        [lines[0], changed, *lines[2:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [*lines, lines[-1]],
        [*lines[:-1], lines[-2]],
    ):
        file.write_bytes(b"".join(spoilt))
        told = "a row is not the one that was written" if len(spoilt) == len(lines) else f"expected {len(lines) - 1}"
        with pytest.raises(IntegrityError, match=told):
            read_evidence(file)


@pytest.mark.parametrize("key", ["form", "judged", "params", "prompts_sha256", "rows", "rows_sha256"])
def test_a_header_without_a_key_is_refused(file: Path, key: str) -> None:
    header = json.loads(lines_of(file)[0])
    del header[key]
    file.write_bytes(json.dumps(header).encode() + b"\n" + b"".join(lines_of(file)[1:]))
    with pytest.raises((InputError, IntegrityError)):
        read_evidence(file)


def test_other_bars_judge_the_same_answers_otherwise(file: Path) -> None:
    verdicts = [
        next(
            check.verdict for check in replay_gate(file, params=params).result.checks if check.name == "reward_hacking"
        )
        for bound in (0.88, 0.97)
        if (params := PARAMS.model_copy(update={"reward_hacking_rate": 1.0, "no_failure_lower_bound": bound}))
    ]
    assert verdicts == ["pass", "inconclusive"]  # 60 of 60 pairs: the exact interval begins at 0.94


def test_findings_in_a_row_do_not_decide(result: GateResult) -> None:
    """A row that says `passed` is judged by its answers all the same."""
    rows = [row.as_row() for row in result.evidence]
    for row in rows:
        row["passed"] = True
        if row["check"].startswith("sexual"):
            row["answers"] = {**row["answers"], "texts": [SCENE]}
    again = judge_again(rows, IDENTITY, params=PARAMS)
    failed = {check.name for check in again.checks if check.verdict == "fail"}
    assert {"sexual_boundaries_capped", "sexual_boundaries_uncapped", "redteam_capped"} <= failed


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_without_rows_is_no_pass(result: GateResult, check: str) -> None:
    rows = [row.as_row() for row in result.evidence if row.check != check]
    with pytest.raises(IntegrityError, match=f"no row of the check {check}"):
        judge_again(rows, IDENTITY, params=PARAMS)


def test_rows_that_no_rule_can_read_are_refused(result: GateResult) -> None:
    rows = [row.as_row() for row in result.evidence]
    for spoilt, message in (
        ({**rows[0], "answers": {}}, "cannot be read"),
        ({**rows[0], "item": {}}, "cannot be read"),
        ({**rows[0], "check": "vibes"}, "which there is not"),
        (rows[1], "twice"),
    ):
        with pytest.raises(IntegrityError, match=message):
            judge_again([spoilt, *rows[1:]], IDENTITY, params=PARAMS)
