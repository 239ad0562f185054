"""Two runs compared: only on what both asked, and only what chance does not explain is called a change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from karma_electric.conversation import Message
from karma_electric.errors import InputError
from karma_electric.gate.comparison import Comparison, compare_evidence
from karma_electric.gate.evidence_file import evidence_bytes
from karma_electric.gate.judging import judge
from karma_electric.suites.items import Suites
from tests.gate.scripted_engine import ScriptedEngine, peaked
from tests.gate.test_planted_failures import PARAMS, PROMPTS, perfect
from tests.suites.test_conduct import CARE


def evidence(path: Path, suites: Suites, engine: ScriptedEngine) -> Path:
    result = judge(engine, suites, prompts=PROMPTS, params=PARAMS, report=lambda line: None)
    path.write_bytes(evidence_bytes(result, PARAMS, {"persona": "p", "evaluator": "e"}))
    return path


def numbered() -> tuple[Suites, ScriptedEngine]:
    suites, engine = perfect()
    redteam = [item.model_copy(update={"turns": [f"{n}"]}) for n, item in enumerate(suites.redteam)]
    return suites.model_copy(update={"redteam": redteam}), engine


def losing(count: int) -> ScriptedEngine:
    _, engine = perfect()

    def answer(messages: Sequence[Message], capped: bool) -> str:
        text = messages[-1].content
        return "So." if text.isdigit() and int(text) < count else CARE

    engine.answers = answer
    return engine


def compared(tmp_path: Path, lost: int) -> dict[str, Comparison]:
    suites, engine = numbered()
    before = evidence(tmp_path / "before.jsonl", suites, engine)
    after = evidence(tmp_path / "after.jsonl", suites, losing(lost))
    return {row.check: row for row in compare_evidence(before, after)}


def test_the_same_run_twice_shows_no_change(tmp_path: Path) -> None:
    rows = compared(tmp_path, 0)
    assert {row.finding for row in rows.values()} == {"no change shown"}
    assert {row.change for row in rows.values()} == {0.0}
    assert {row.p_value for row in rows.values()} == {1.0}


@pytest.mark.parametrize(("lost", "finding"), [(1, "no change shown"), (8, "no change shown"), (30, "worse")])
def test_a_loss_is_called_one_when_chance_does_not_explain_it(tmp_path: Path, lost: int, finding: str) -> None:
    """Of 8 losses and no gain, McNemar's p is 0.008; over 13 checks that is no finding (Holm)."""
    row = compared(tmp_path, lost)["redteam_capped"]
    assert (row.items, row.finding) == (100, finding)
    assert row.change == pytest.approx(-lost / 100)
    assert row.low <= row.change <= row.high


def test_a_wider_spread_is_worse_and_a_narrower_one_better(tmp_path: Path) -> None:
    suites, engine = perfect()
    wide = ScriptedEngine(
        scores=lambda prompt, response: peaked(5 if prompt.startswith("My") else 8), answers=engine.answers
    )
    steady = evidence(tmp_path / "steady.jsonl", suites, engine)
    spread = evidence(tmp_path / "spread.jsonl", suites, wide)
    jittery = {row.check: row for row in compare_evidence(steady, spread)}["paraphrase"]
    assert jittery.change > 0
    assert jittery.finding == "worse"
    back = {row.check: row for row in compare_evidence(spread, steady)}["paraphrase"]
    assert (back.change, back.finding) == (-jittery.change, "better")


def test_only_items_in_the_same_words_are_compared(tmp_path: Path) -> None:
    suites, engine = perfect()
    before = evidence(tmp_path / "before.jsonl", suites, engine)
    reworded = [item.model_copy(update={"prompt": f"Anew {n}"}) for n, item in enumerate(suites.reward_hacking)]
    kept = [*suites.reward_hacking[:7], *reworded[7:]]
    after = evidence(tmp_path / "after.jsonl", suites.model_copy(update={"reward_hacking": kept}), engine)
    assert {row.check: row.items for row in compare_evidence(before, after)}["reward_hacking"] == 7


def test_runs_without_a_common_item_cannot_be_compared(tmp_path: Path) -> None:
    suites, engine = perfect()
    other = {
        name: [item.model_copy(update={"id": f"{item.id}-other"}) for item in getattr(suites, name)]
        for name in Suites.model_fields
    }
    before = evidence(tmp_path / "before.jsonl", suites, engine)
    after = evidence(tmp_path / "after.jsonl", suites.model_copy(update=other), engine)
    with pytest.raises(InputError, match="asked no item in the same words"):
        compare_evidence(before, after)
