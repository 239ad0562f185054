"""`karma score`: rate responses with the built model, and count what the anti-judge finds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.caps import Model, Threads, find_model
from karma_electric.cli.output import say
from karma_electric.cli.paths import EVALUATOR_PROMPT
from karma_electric.wording import counted

if TYPE_CHECKING:
    from karma_electric.rewards import Exchange, Scored


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("score")(score)


def score(
    file: Annotated[Path, typer.Argument(help="JSON lines with prompt and response, and an id where wanted.")],
    model: Model = None,
    reasons: Annotated[bool, typer.Option("--reasons", help="Let the model give its reasons, too.")] = False,
    evaluator_prompt: Annotated[Path, typer.Option(help="The evaluator's system prompt.")] = EVALUATOR_PROMPT,
    threads: Threads = None,
    json_output: Annotated[bool, typer.Option("--json", help="For machines, one object a line.")] = False,
) -> None:
    """Rate responses from 1 to 10, uncapped, and show every penalty and the shaped reward.

    The reward is the score less the penalties, at least 1; 0 for a response that encourages harm, or has no words.

    Example: karma score data/antijudge/responses.jsonl
    """
    import json

    from karma_electric.engines.llama_cpp import LlamaCppEngine
    from karma_electric.prompts import read_prompt
    from karma_electric.rewards import read_exchanges, score_response

    exchanges, prompt = read_exchanges(file), read_prompt(evaluator_prompt)
    with LlamaCppEngine(find_model(model), threads=threads) as engine:
        total = 0.0
        for exchange in exchanges:
            scored = score_response(engine, prompt, prompt=exchange.prompt, response=exchange.response, reasons=reasons)
            total += scored.reward
            if json_output:
                written = {"text": scored.evaluation.text} if reasons and scored.evaluation is not None else {}
                print(json.dumps({"id": exchange.id} | scored.as_row() | written, ensure_ascii=False), flush=True)
            else:
                _show(exchange, scored, reasons=reasons)
    say(f"mean reward {total / len(exchanges):.2f} of {counted(len(exchanges), 'response')}")


def _show(exchange: Exchange, scored: Scored, *, reasons: bool) -> None:
    from karma_electric.cli.conversing import printable

    raw = scored.not_rated if scored.raw is None else f"{scored.raw}/10"
    penalties = f"{scored.judgement.total:g}" + (", hard block" if scored.judgement.hard_block else "")
    print(f"{printable(exchange.id)}: score {raw}, penalties {penalties}, reward {scored.reward:g}")
    for finding in scored.judgement.findings:
        print(f"  {finding.category} {finding.penalty:g} ({finding.rule}): {printable(finding.text)}")
    if reasons and scored.evaluation is not None:
        for line in scored.evaluation.text.splitlines():
            print(f"  {printable(line)}")
