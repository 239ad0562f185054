"""`karma serve`: chat completions over HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from karma_electric.cli.caps import (
    Acap,
    Alpha,
    CapFlags,
    ContextTokens,
    Force,
    Layers,
    Model,
    Threads,
    Threshold,
    find_cap,
    find_model,
)
from karma_electric.cli.output import say
from karma_electric.errors import InputError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("serve")(serve)


def serve(
    model: Model = None,
    acap: Acap = None,
    threshold: Threshold = None,
    layers: Layers = None,
    alpha: Alpha = None,
    force: Force = False,
    uncapped: Annotated[bool, typer.Option("--uncapped", help="Serve without any cap.")] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port, and says which.")] = 8080,
    name: Annotated[str | None, typer.Option(help="What clients call the model; by default its file's name.")] = None,
    context: ContextTokens = 4096,
    parallel: Annotated[int, typer.Option(min=1, max=256, help="Requests that are answered at once.")] = 4,
    queue: Annotated[int, typer.Option(min=0, help="Requests that wait behind them; more are refused.")] = 64,
    threads: Threads = None,
) -> None:
    """Serve a GGUF file as OpenAI-compatible chat completions, capped by default. `"acap": false` asks uncapped.

    Example: karma serve
    """
    flags = CapFlags(acap, threshold, layers, alpha, force)
    path = find_model(model)
    if path.is_dir():
        raise InputError(f"{path}: is a folder, expected a GGUF file; `karma chat` takes folders")
    from karma_electric.engines.llama_cpp import LlamaCppEngine
    from karma_electric.server.run import ServerLimits, bind, run_server

    with bind(host, port) as listener:
        loaded = find_cap(path, flags, capped=not uncapped)
        cap, axis_sha256 = (None, None) if loaded is None else (loaded.cap, loaded.sha256)
        with LlamaCppEngine(path, cap=cap, axis_sha256=axis_sha256, context_tokens=context, threads=threads) as engine:
            run_server(
                engine,
                cap=cap,
                model_name=name or path.stem,
                listener=listener,
                limits=ServerLimits(parallel=parallel, max_waiting=queue),
                on_ready=lambda url: say(f"listening on {url}"),
            )
