"""`karma chat`: a conversation in the terminal, or one turn a line from a pipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.caps import (
    Acap,
    Alpha,
    CapFlags,
    ChatModel,
    ContextTokens,
    Force,
    Layers,
    Threads,
    Threshold,
    find_cap,
    find_model,
)
from karma_electric.cli.output import say
from karma_electric.cli.paths import PERSONA_PROMPT
from karma_electric.errors import InputError

if TYPE_CHECKING:
    from karma_electric.axis.loading import LoadedAxis
    from karma_electric.engines.protocol import ChatEngine


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("chat")(chat)


def chat(
    model: ChatModel = None,
    capped: Annotated[
        bool | None,
        typer.Option("--capped/--uncapped", help="By default this project's model is capped, another one is not."),
    ] = None,
    acap: Acap = None,
    threshold: Threshold = None,
    layers: Layers = None,
    alpha: Alpha = None,
    force: Force = False,
    compare: Annotated[bool, typer.Option("--compare", help="Answer capped and uncapped, side by side.")] = False,
    system_prompt: Annotated[Path | None, typer.Option(help="A file; of this project's model, the persona's.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Keep the likeliest tokens that reach this share.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answers.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of one answer.")] = 512,
    context: ContextTokens = 4096,
    threads: Threads = None,
) -> None:
    """Chat with a GGUF file or a merged folder. From a pipe each line is a turn.

    At a terminal /new starts again, and Ctrl-D ends.

    Example: karma chat --capped
    """
    if compare and capped is False:
        raise InputError("--compare answers capped and uncapped, so --uncapped does not go with it; leave out one")
    flags = CapFlags(acap, threshold, layers, alpha, force)
    path = find_model(model)
    wanted = (compare or bool(flags.given()) or model is None) if capped is None else capped
    loaded = find_cap(path, flags, capped=wanted)
    if system_prompt is None and model is None and PERSONA_PROMPT.is_file():
        system_prompt = PERSONA_PROMPT
    from karma_electric.cli.conversing import Conversing
    from karma_electric.engines.sampling import Sampling
    from karma_electric.prompts import read_prompt

    if system_prompt is not None:
        say(f"system prompt: {system_prompt}")
    conversing = Conversing(
        system_prompt=None if system_prompt is None else read_prompt(system_prompt),
        sampling=Sampling(temperature, top_p, seed),
        max_tokens=max_tokens,
        capped=wanted,
        compare=compare,
    )
    engine = _open_engine(path, loaded, context, threads)
    try:
        conversing.run(engine)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our answers has gone; so does the interpreter, without a word
    finally:
        engine.close()


def _open_engine(path: Path, loaded: LoadedAxis | None, context: int, threads: int | None) -> ChatEngine:
    cap, axis_sha256 = (None, None) if loaded is None else (loaded.cap, loaded.sha256)
    if path.is_dir():
        if threads is not None:
            raise InputError("--threads is for GGUF files; PyTorch takes OMP_NUM_THREADS")
        from karma_electric.engines.transformers import TransformersEngine

        return TransformersEngine(path, cap=cap, axis_sha256=axis_sha256, context_tokens=context)
    from karma_electric.engines.llama_cpp import LlamaCppEngine

    return LlamaCppEngine(path, cap=cap, axis_sha256=axis_sha256, context_tokens=context, threads=threads)
