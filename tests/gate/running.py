"""A small gate on the tiny model, run as the stage runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from karma_electric.gate.params import GateParams
from karma_electric.gate.run import GateRun, run_gate
from tests.gate.conftest import Judged
from tests.gate.test_planted_failures import PARAMS
from tests.suites.suite_files import REPOSITORY, SHIPPED_SUITES

PROMPTS = REPOSITORY / "data" / "prompts"


def small(**changes: Any) -> GateParams:
    """The bars for one item a check and short answers; `changes` are checked as the recipe's are."""
    return GateParams.model_validate(PARAMS.model_dump() | {"items_per_check": 1, "answer_tokens": 8} | changes)


def run_small_gate(
    judged: Judged,
    folder: Path,
    *,
    suites: Path = SHIPPED_SUITES,
    params: GateParams | None = None,
    store: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> GateRun:
    """Evidence and report lie in `folder`, as gate.jsonl and gate.md."""
    return run_gate(
        judged.model,
        judged.axis,
        suites=suites,
        persona_prompt=PROMPTS / "persona.txt",
        evaluator_prompt=PROMPTS / "evaluator.txt",
        evidence=folder / "gate.jsonl",
        report_markdown=folder / "gate.md",
        params=params or small(),
        report=report,
        store=store,
    )
