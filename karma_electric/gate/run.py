"""The release gate: every check, on exactly the files that would ship."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from karma_electric.axis.files import load_axis
from karma_electric.canonical import write_json_lines
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.gate.judging import judge
from karma_electric.gate.params import GateParams
from karma_electric.gate.report import gate_report
from karma_electric.gate.results import GateResult
from karma_electric.integrity import write_bytes, write_text
from karma_electric.prompts import read_prompt
from karma_electric.suites.items import read_suites


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
    items = read_suites(suites)
    persona, evaluator = read_prompt(persona_prompt), read_prompt(evaluator_prompt)
    loaded = load_axis(axis)
    with LlamaCppEngine(model, cap=loaded.cap(), axis_sha256=loaded.sha256) as engine:
        result = judge(engine, items, persona_prompt=persona, evaluator_prompt=evaluator, params=params, report=report)
    write_bytes(evidence, write_json_lines(row.as_row() for row in result.evidence))
    write_text(report_markdown, gate_report(result))
    return result
