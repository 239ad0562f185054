"""What is asked of a model, as values: a question holds all that its answer depends on, but for the model itself."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from karma_electric.conversation import Message
from karma_electric.engines.protocol import Engine, Generation


@dataclass(frozen=True, slots=True)
class Write:
    """Go on with the answer that starts with `prefix`, greedily, up to `max_tokens` or one of the `stop` texts."""

    messages: tuple[Message, ...]
    max_tokens: int
    capped: bool = False
    prefix: str = ""
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Weigh:
    """How probable is each of the options as the continuation of the answer that starts with `prefix`?"""

    messages: tuple[Message, ...]
    options: tuple[str, ...]
    capped: bool = False
    prefix: str = ""


Question = Write | Weigh
Answer = Generation | list[float]  # to Write; to Weigh: log-probabilities in nats

T = TypeVar("T")
# Yields questions, is sent their answers, and returns what it made of them.
Interview = Generator[Question, Any, T]


def ask(engine: Engine, question: Question) -> Answer:
    """The engine's answer."""
    if isinstance(question, Write):
        return engine.generate(
            question.messages,
            max_tokens=question.max_tokens,
            capped=question.capped,
            prefix=question.prefix,
            stop=question.stop,
        )
    return engine.score(question.messages, prefix=question.prefix, options=question.options, capped=question.capped)


def hold(engine: Engine, interview: Interview[T]) -> T:
    """Ask one interview's questions, one after another; what it returns."""
    try:
        question = next(interview)
        while True:
            question = interview.send(ask(engine, question))
    except StopIteration as stop:
        result: T = stop.value
        return result
