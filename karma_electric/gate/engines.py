"""What judges: the engine that the recipe names, opened on the files that would ship."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from karma_electric.axis.loading import LoadedAxis
from karma_electric.engines.protocol import Engine
from karma_electric.errors import InputError
from karma_electric.gate.params import JUDGE_KEY_VARIABLE, KEY_VARIABLE, GateParams, judge_server_url, server_url
from karma_electric.gate.plan import all_checks

CONTEXT_TOKENS = 2048  # of each conversation; as many are in memory as llama.cpp answers at once


@dataclass(frozen=True)
class OpenEngine:
    """An engine, and what the gate must know of it."""

    engine: Engine
    arithmetic: str  # what it computes with here; part of the key of a kept answer
    held: bool = True  # whether it keeps to a form and weighs any text
    may_keep_answers: bool = True  # whether its identity says what answered
    not_asked: Mapping[str, str] = field(default_factory=dict)  # checks that it cannot be asked, and why


@contextlib.contextmanager
def open_engine(
    params: GateParams, model: Path, axis: LoadedAxis | None, *, threads: int | None = None
) -> Iterator[OpenEngine]:
    """The engine of `gate.engine` for the GGUF file `model`, capped by `axis`, a cap that fits it. `threads` is for
    llama.cpp.

    Raises InputError, SetupError or IntegrityError where it cannot be opened.
    """
    cap, axis_sha256 = (None, None) if axis is None else (axis.cap, axis.sha256)
    if params.engine == "llama.cpp":
        from karma_electric.engines.llama_cpp import LlamaCppEngine

        with LlamaCppEngine(
            model, cap=cap, axis_sha256=axis_sha256, threads=threads, context_tokens=CONTEXT_TOKENS
        ) as llama_cpp:
            yield OpenEngine(llama_cpp, llama_cpp.arithmetic)
    elif params.engine == "transformers":
        from karma_electric.engines.transformers import TransformersEngine

        pytorch = TransformersEngine(model, cap=cap, axis_sha256=axis_sha256)
        with contextlib.closing(pytorch):
            yield OpenEngine(pytorch, pytorch.arithmetic)
    else:
        with _open_server(params, model, axis) as opened:
            yield opened


@contextlib.contextmanager
def _open_server(params: GateParams, model: Path, axis: LoadedAxis | None) -> Iterator[OpenEngine]:
    from karma_electric.engines.llama_cpp_model import LlamaCppModel
    from karma_electric.engines.openai_server import OpenAIServerEngine, ReleaseFiles

    if axis is None:
        raise InputError("engine openai needs the axis of the release, to compare it with the server's; name one")
    vocabulary = LlamaCppModel(model, vocab_only=True)
    try:
        with OpenAIServerEngine(
            server_url(params),
            tokenize=lambda text, parse_special: vocabulary.tokenize(text, parse_special=parse_special),
            release=ReleaseFiles(vocabulary.sha256, axis.sha256, axis.cap),
            served_model=params.served_model,
            api_key=os.environ.get(KEY_VARIABLE) or None,
        ) as server:
            vouched = server.identity.vouched
            yield OpenEngine(
                server,
                arithmetic="as the server computes",
                held=False,
                may_keep_answers=vouched,
                not_asked=_not_asked(params, vouched=vouched, weighs=server.weighs),
            )
    finally:
        vocabulary.free()


@contextlib.contextmanager
def open_judge(params: GateParams) -> Iterator[Engine | None]:
    """The judge model that the recipe names; None where it names none. Its identity is a claim that nothing of the
    release can vouch for, so its answers are never kept. Raises as `open_engine` does."""
    url = judge_server_url(params)
    if url is None:
        yield None
        return
    from karma_electric.engines.openai_server import OpenAIServerEngine, ServerSettings

    with OpenAIServerEngine(
        url,
        served_model=params.judge_model,
        api_key=os.environ.get(JUDGE_KEY_VARIABLE) or None,
        settings=ServerSettings(model="gate.judge_model", key=JUDGE_KEY_VARIABLE),
    ) as server:
        yield server


def _not_asked(params: GateParams, *, vouched: bool, weighs: bool) -> dict[str, str]:
    """Capped checks of a server that does not vouch for weights and cap; and weighed ones where it weighs nothing."""
    checks = all_checks(params)
    reasons = {} if weighs else {c.name: "it gives no log-probabilities" for c in checks if c.suite == "capability"}
    if not vouched:
        reasons |= {c.name: "it does not name the release's weights and axis as its own" for c in checks if c.capped}
    return {name: f"the server: {reason}" for name, reason in reasons.items()}
