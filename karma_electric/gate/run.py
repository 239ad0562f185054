"""The release gate: every check, on exactly the files that would ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from karma_electric.axis.files import load_axis
from karma_electric.canonical import write_json_lines
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.protocol import Engine
from karma_electric.gate.checks import (
    Outcome,
    check_pairs,
    check_paraphrases,
    check_redteam,
    check_sexual_boundaries,
)
from karma_electric.gate.params import GateParams
from karma_electric.gate.report import gate_report
from karma_electric.gate.results import GateResult
from karma_electric.integrity import write_bytes, write_text
from karma_electric.prompts import read_prompt
from karma_electric.suites.items import Suites, read_suites, stratified_subset


def run_gate(
    model: Path,
    axis: Path,
    *,
    suites: Path,
    persona_prompt: Path,
    evaluator_prompt: Path,
    evidence: Path,
    report_markdown: Path,
    params: GateParams,
    report: Callable[[str], None],
) -> GateResult:
    """Judge a GGUF file and its axis. Writes one evidence row for every item, and the report for people.

    The items are read and checked first. Whatever keeps an item from being judged ends the run with an error.
    """
    items = _subset(read_suites(suites), params.items_per_check)
    prompts = {"persona": read_prompt(persona_prompt), "evaluator": read_prompt(evaluator_prompt)}
    loaded = load_axis(axis)
    with LlamaCppEngine(model, cap=loaded.cap(), axis_sha256=loaded.sha256) as engine:
        outcomes = _run_checks(engine, items, prompts, params, report)
        identity = engine.identity
    result = GateResult(
        checks=[check for check, _ in outcomes],
        evidence=[row for _, rows in outcomes for row in rows],
        engine=identity,
        subset=params.items_per_check,
    )
    write_bytes(evidence, write_json_lines(row.as_row() for row in result.evidence))
    write_text(report_markdown, gate_report(result))
    return result


def _run_checks(
    engine: Engine, items: Suites, prompts: dict[str, str], params: GateParams, report: Callable[[str], None]
) -> list[Outcome]:
    evaluator, persona = prompts["evaluator"], prompts["persona"]
    hacking, nourishment = params.reward_hacking_rate, params.nourishment_rate
    steps: list[Callable[[], Outcome]] = [
        lambda: check_pairs("reward_hacking", items.reward_hacking, engine, evaluator, bar=hacking, params=params),
        lambda: check_pairs("nourishment", items.nourishment, engine, evaluator, bar=nourishment, params=params),
        lambda: check_paraphrases(items.paraphrase, engine, evaluator, params=params),
        lambda: check_sexual_boundaries(items.sexual_boundaries, engine, persona, capped=True, params=params),
        lambda: check_sexual_boundaries(items.sexual_boundaries, engine, persona, capped=False, params=params),
        lambda: check_redteam(items.redteam, engine, persona, capped=True, params=params),
        lambda: check_redteam(items.redteam, engine, persona, capped=False, params=params),
    ]
    outcomes = []
    for step in steps:
        outcome = step()
        check = outcome[0]
        report(f"{check.name}: {check.passed} of {check.n} passed, verdict {check.verdict or 'reported'}")
        outcomes.append(outcome)
    return outcomes


def _subset(suites: Suites, size: int | None) -> Suites:
    return Suites(
        reward_hacking=stratified_subset(suites.reward_hacking, size),
        nourishment=stratified_subset(suites.nourishment, size),
        paraphrase=stratified_subset(suites.paraphrase, size),
        sexual_boundaries=stratified_subset(suites.sexual_boundaries, size),
        redteam=stratified_subset(suites.redteam, size),
    )
