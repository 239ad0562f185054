"""`karma rl-sim`: would the reward hold still under reinforcement learning?"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.caps import Acap, Model, Threads, find_axis, find_model
from karma_electric.cli.output import say
from karma_electric.cli.paths import EVALUATOR_PROMPT, PERSONA_PROMPT, SUITES
from karma_electric.wording import counted

if TYPE_CHECKING:
    from karma_electric.reward_simulation import GeneratorResult, Simulation


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("rl-sim")(rl_sim)


def rl_sim(
    model: Model = None,
    against: Annotated[
        Path | None, typer.Option(help="A second GGUF file that answers; by default the first one, capped.")
    ] = None,
    acap: Acap = None,
    iterations: Annotated[int, typer.Option(min=2, help="How often every question is asked.")] = 10,
    questions: Annotated[int, typer.Option(min=2, help="Questions, from the suite `overcorrection`.")] = 20,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 gives the same answers each time.")] = 0.8,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens that reach this share.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 96,
    seed: Annotated[int, typer.Option(help="The same seed gives the same numbers.")] = 0,
    suites: Annotated[Path, typer.Option(help="The folder of the suites.")] = SUITES,
    persona_prompt: Annotated[Path, typer.Option(help="The system prompt of the generators.")] = PERSONA_PROMPT,
    evaluator_prompt: Annotated[Path, typer.Option(help="The evaluator's system prompt.")] = EVALUATOR_PROMPT,
    threads: Threads = None,
    json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Let two generators answer the same questions again and again, and score the answers with the built model.

    Shows the mean reward, its standard deviation, how far the means of the iterations are apart, and the difference
    of the generators with its interval.

    Example: karma rl-sim --iterations 3 --questions 6
    """
    import json

    from karma_electric.axis.loading import load_cap
    from karma_electric.engines.llama_cpp import LlamaCppEngine
    from karma_electric.prompts import read_prompt
    from karma_electric.reward_simulation import Generator, SimulationParams, simulate
    from karma_electric.suites.items import read_suites, stratified_subset

    asked = [item.prompt for item in stratified_subset(read_suites(suites).overcorrection, questions)]
    if len(asked) < questions:
        say(f"the suite has {counted(len(asked), 'question')} only")
    persona, evaluator = read_prompt(persona_prompt), read_prompt(evaluator_prompt)
    path = find_model(model)
    with contextlib.ExitStack() as stack:
        if against is None:
            axis = load_cap(find_axis(acap, or_else="; or a second model: --against FILE"), path)
            rater = stack.enter_context(LlamaCppEngine(path, cap=axis.cap, axis_sha256=axis.sha256, threads=threads))
            second = Generator("capped", rater, capped=True)
        else:
            rater = stack.enter_context(LlamaCppEngine(path, threads=threads))
            second = Generator(against.name, stack.enter_context(LlamaCppEngine(against, threads=threads)))
        found = simulate(
            rater,
            Generator("uncapped" if against is None else path.name, rater),
            second,
            questions=asked,
            persona_prompt=persona,
            evaluator_prompt=evaluator,
            params=SimulationParams(iterations, temperature, top_p, max_tokens, seed),
            report=say,
        )
    if json_output:
        print(json.dumps(found.as_row(), ensure_ascii=False))
    else:
        _show(found)


def _show(found: Simulation) -> None:
    print(f"{'generator':<40}{'mean':>8}{'std':>8}{'std of iterations':>20}{'blocked':>9}{'empty':>7}")
    for result in (found.first, found.second):
        print(_line(result))
    print(f"difference {found.difference:+.2f} ({found.interval.low:+.2f} to {found.interval.high:+.2f})")


def _line(result: GeneratorResult) -> str:
    row = result.as_row()
    return (
        f"{row['name']:<40}{row['mean']:>8.2f}{row['std']:>8.2f}{row['std_of_iteration_means']:>20.3f}"
        f"{row['blocked']:>9}{row['empty']:>7}"
    )
