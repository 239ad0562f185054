"""The release gate: every check, on exactly the files that would ship."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.axis.loading import load_cap
from karma_electric.errors import IntegrityError
from karma_electric.gate.answer_store import open_answer_store
from karma_electric.gate.checks import Prompts
from karma_electric.gate.engines import open_engine, open_judge
from karma_electric.gate.evidence_file import evidence_bytes, read_evidence
from karma_electric.gate.judging import judge, judge_again
from karma_electric.gate.params import GateParams
from karma_electric.gate.report import gate_report
from karma_electric.gate.results import GateResult
from karma_electric.integrity import sha256_file, write_bytes, write_text
from karma_electric.prompts import read_prompt
from karma_electric.suites.conduct_judge import JUDGE_PROMPT
from karma_electric.suites.items import read_suites


@dataclass(frozen=True)
class GateRun:
    """A result, with the metrics that name its evidence."""

    result: GateResult
    metrics: dict[str, Any]


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
    store: Path | None = None,
) -> GateRun:
    """Judge a GGUF file and its axis with the engine that `params` names. Writes one evidence row for every item, and
    the report for people.

    The items are read and checked first. Whatever keeps an item from being judged ends the run with an error; answers
    given so far are in `store`, where the next run finds them. An axis that was made from other weights is an error.
    """
    items = read_suites(suites)
    persona, evaluator = read_prompt(persona_prompt), read_prompt(evaluator_prompt)
    with contextlib.ExitStack() as stack:
        judge_model = stack.enter_context(open_judge(params))  # not there? said before the model answers anything
        opened = stack.enter_context(open_engine(params, model, load_cap(axis, model)))
        keep_in = store if opened.may_keep_answers else None
        prompts = Prompts(persona, evaluator, held=opened.held)
        result = judge(
            opened.engine,
            items,
            prompts=prompts,
            params=params,
            report=report,
            store=None if keep_in is None else stack.enter_context(open_answer_store(keep_in)),
            arithmetic=opened.arithmetic,
            not_asked=opened.not_asked,
            judge_model=judge_model,
        )
    data = evidence_bytes(result, params, _hashes(prompts, judged=result.judge_model is not None))
    write_bytes(evidence, data)
    write_text(report_markdown, gate_report(result))
    return GateRun(result, result.as_metrics(evidence_sha256=hashlib.sha256(data).hexdigest()))


def replay_gate(evidence: Path, *, params: GateParams | None = None) -> GateRun:
    """Judge again from kept answers: with the bars that were used, or with others. Raises as `judge_again` does, and
    IntegrityError when a row's own findings are not what the rules of today find."""
    kept = read_evidence(evidence)
    result = judge_again(
        kept.rows, kept.identity, params=params or kept.params, not_asked=kept.not_asked, judge_model=kept.judge_model
    )
    return GateRun(result, result.as_metrics(evidence_sha256=sha256_file(evidence)))


def changed_findings(evidence: Path, run: GateRun) -> list[str]:
    """The items, as `check id`, that are judged otherwise now than when the evidence was written."""
    kept = {(row["check"], row["id"]): row["passed"] for row in read_evidence(evidence).rows}
    return [f"{row.check} {row.id}" for row in run.result.evidence if kept[row.check, row.id] != row.passed]


def check_same_verdict(metrics: dict[str, Any], run: GateRun) -> None:
    """Raises IntegrityError when metrics of a gate are not those of its evidence."""
    if metrics != run.metrics:
        found = metrics.get("verdict")
        raise IntegrityError(
            f"the gate's metrics say {found!r}, its evidence says {run.metrics['verdict']!r} or differs in a number; "
            "run the gate again"
        )


def _hashes(prompts: Prompts, *, judged: bool) -> dict[str, str]:
    """Of the system prompts; of the judge model's instruction where one `judged`."""
    texts = {"persona": prompts.persona, "evaluator": prompts.evaluator} | ({"judge": JUDGE_PROMPT} if judged else {})
    return {name: hashlib.sha256(text.encode("utf-8")).hexdigest() for name, text in texts.items()}
