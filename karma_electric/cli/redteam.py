"""`karma redteam`: the red-team suite by itself, as it is written or in mutated attacks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.caps import Acap, Model, Threads, find_axis, find_model
from karma_electric.cli.output import say
from karma_electric.cli.paths import PERSONA_PROMPT, RECIPE, SUITES

if TYPE_CHECKING:
    from karma_electric.gate.redteam import RedteamRun


class Mode(StrEnum):
    """How the model answers."""

    BOTH = "both"
    CAPPED = "capped"
    UNCAPPED = "uncapped"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("redteam")(redteam)


def redteam(
    model: Model = None,
    acap: Acap = None,
    mode: Annotated[Mode, typer.Option(help="Answer capped, uncapped, or both.")] = Mode.BOTH,
    fuzz: Annotated[int | None, typer.Option(min=1, help="Ask so many mutated attacks instead of the suite.")] = None,
    seed: Annotated[int, typer.Option(help="Of the mutations.")] = 0,
    items: Annotated[int | None, typer.Option(min=1, help="Scenarios to start from; by default all.")] = None,
    answer_tokens: Annotated[int | None, typer.Option(min=8, help="Of one answer; by default the gate's.")] = None,
    suites: Annotated[Path, typer.Option(help="The folder of the suites.")] = SUITES,
    params: Annotated[Path, typer.Option("--params", help="The recipe with the gate's section.")] = RECIPE,
    persona_prompt: Annotated[Path, typer.Option(help="The system prompt of the conversations.")] = PERSONA_PROMPT,
    threads: Threads = None,
    json_output: Annotated[bool, typer.Option("--json", help="For machines, with every answer.")] = False,
) -> None:
    """Attack a GGUF file and judge what it does, as the gate does, with the gate's engine; answers are kept.

    The mutations are role play, translation, encoding, claimed authority, emotional pressure and a request in parts.
    The verdicts are figures here, not an exit code: the bar is the gate's.

    Example: karma redteam --fuzz 24 --seed 7 --mode capped
    """
    import json

    from karma_electric.gate.answer_store import open_answer_store
    from karma_electric.gate.checks import Prompts
    from karma_electric.gate.engines import open_engine, open_judge
    from karma_electric.gate.params import GateParams
    from karma_electric.gate.redteam import run_redteam
    from karma_electric.parameters import read_section
    from karma_electric.prompts import read_prompt
    from karma_electric.suites.fuzzing import mutated
    from karma_electric.suites.items import read_suites, stratified_subset
    from karma_electric.working_store import working_store

    scenarios = stratified_subset(read_suites(suites).redteam, items)
    if fuzz is not None:
        scenarios = mutated(scenarios, count=fuzz, seed=seed)
    bars = read_section(params, "gate", GateParams)
    if answer_tokens is not None:
        bars = bars.model_copy(update={"answer_tokens": answer_tokens})
    prompts = Prompts(persona=read_prompt(persona_prompt), evaluator="")
    path, axis = find_model(model), None
    if mode is not Mode.UNCAPPED or bars.engine == "openai":
        from karma_electric.axis.loading import load_cap

        axis = load_cap(find_axis(acap, or_else="; or --mode uncapped"), path)
    runs = []
    with (
        open_judge(bars) as judge_model,
        open_engine(bars, path, axis, threads=threads) as opened,
        open_answer_store(working_store("answers") / "answers.db") as store,
    ):
        for capped in {Mode.BOTH: (False, True), Mode.CAPPED: (True,), Mode.UNCAPPED: (False,)}[mode]:
            run = run_redteam(
                opened.engine,
                scenarios,
                prompts=prompts,
                params=bars,
                capped=capped,
                report=say,
                store=store if opened.may_keep_answers else None,
                arithmetic=opened.arithmetic,
                judge_model=judge_model,
            )
            runs.append(run)
            if not json_output:
                _show(run)
    if json_output:
        print(json.dumps([run.as_row() for run in runs], ensure_ascii=False))


def _show(run: RedteamRun) -> None:
    from karma_electric.gate.redteam import VERDICTS

    print(f"{'capped' if run.capped else 'uncapped':<28}" + "".join(f"{verdict:>10}" for verdict in VERDICTS))
    for category, counts in run.by_category().items():
        print(f"  {category:<26}" + "".join(f"{counts[verdict]:>10}" for verdict in VERDICTS))
    low, high = run.interval.low, run.interval.high
    print(f"  passed {run.passed} of {len(run.rows)}, {low:.1%} to {high:.1%}")
