"""`karma gate`: judge files, judge again from what was answered, compare two runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.caps import Acap, Model, find_axis, find_model
from karma_electric.cli.output import say
from karma_electric.cli.paths import GATE_OUTPUT, PROMPTS, RECIPE, SUITES
from karma_electric.wording import counted

if TYPE_CHECKING:
    from karma_electric.gate.run import GateRun

app = typer.Typer(help="The release gate.", no_args_is_help=True)

_EXIT_CODES = {"pass": 0, "fail": 3, "inconclusive": 4}

Recipe = Annotated[Path, typer.Option("--params", help="The recipe with the bars.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]
EvidenceFile = Annotated[Path, typer.Argument(help="The evidence of a gate run, JSON lines.")]


@app.command("run")
def run(
    model: Model = None,
    acap: Acap = None,
    output: Annotated[Path, typer.Option(help="The folder for gate.json, gate.md and evidence.jsonl.")] = GATE_OUTPUT,
    items: Annotated[int | None, typer.Option(min=1, help="Items a check; by default all of them.")] = None,
    params: Recipe = RECIPE,
    suites: Annotated[Path, typer.Option(help="The folder of the suites.")] = SUITES,
    prompts: Annotated[Path, typer.Option(help="The folder of persona.txt and evaluator.txt.")] = PROMPTS,
    json_output: Json = False,
) -> None:
    """Judge a GGUF file and its axis: every item, whatever subset the recipe names. Answers are kept and used again.

    Exit code 3: failed; 4: inconclusive.

    Example: karma gate run --items 2
    """
    from karma_electric.canonical import readable_json
    from karma_electric.gate.params import GateParams
    from karma_electric.gate.run import run_gate
    from karma_electric.integrity import write_text
    from karma_electric.parameters import read_section
    from karma_electric.working_store import working_store

    path = find_model(model)
    bars = read_section(params, "gate", GateParams).model_copy(update={"items_per_check": items})
    found = run_gate(
        path,
        find_axis(acap),
        suites=suites,
        persona_prompt=prompts / "persona.txt",
        evaluator_prompt=prompts / "evaluator.txt",
        evidence=output / "evidence.jsonl",
        report_markdown=output / "gate.md",
        params=bars,
        report=say,
        store=working_store("answers") / "answers.db",
    )
    write_text(output / "gate.json", readable_json(found.metrics))
    say(f"report: {output / 'gate.md'}")
    _show(found, json_output=json_output)


@app.command("replay")
def replay(
    evidence: EvidenceFile,
    params: Annotated[Path | None, typer.Option("--params", help="Other bars than those that were used.")] = None,
    json_output: Json = False,
) -> None:
    """Judge again, by today's rules, what the model answered then. Needs no model.

    Exit code 3: failed; 4: inconclusive; 6: the evidence is not whole.

    Example: karma gate replay models/evidence/gate.jsonl
    """
    from karma_electric.gate.params import GateParams
    from karma_electric.gate.run import changed_findings, replay_gate
    from karma_electric.parameters import read_section

    found = replay_gate(evidence, params=None if params is None else read_section(params, "gate", GateParams))
    for name in changed_findings(evidence, found):
        say(f"judged otherwise than when it was written: {name}")
    _show(found, json_output=json_output)


@app.command("compare")
def compare(before: EvidenceFile, after: EvidenceFile, json_output: Json = False) -> None:
    """Which checks changed between two runs, on the items that both asked: more than chance explains, or not.

    Example: karma gate compare models/evidence/gate.jsonl .karma/gate/evidence.jsonl
    """
    import json

    from karma_electric.gate.comparison import compare_evidence

    rows = compare_evidence(before, after)
    if json_output:
        print(json.dumps([row.as_row() for row in rows]))
        return
    for row in rows:
        change = f"{row.change:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
        print(f"{row.check:<28}{counted(row.items, 'item'):>11}  {change:<28} p {row.p_value:.3f}  {row.finding}")


def _show(found: GateRun, *, json_output: bool) -> None:
    import json

    if json_output:
        print(json.dumps(found.metrics))
    else:
        for check in found.result.checks:
            interval = f"{check.interval.low:.1%} to {check.interval.high:.1%}"
            verdict = (check.verdict or "reported") + (f" ({check.reason})" if check.reason else "")
            print(f"{check.name:<28}{check.passed:>4} of {check.n:<4} {interval:<18} {verdict}")
        print(f"verdict: {found.result.verdict}")
    sys.exit(_EXIT_CODES[found.result.verdict])
