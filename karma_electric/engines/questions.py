"""What is asked of a model, as values: a question holds all that its answer depends on, but for the model itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

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
    """How probable is each of the options as the continuation of the answer that starts with `prefix`?

    `held`: as if nothing but the options could be written.
    """

    messages: tuple[Message, ...]
    options: tuple[str, ...]
    capped: bool = False
    prefix: str = ""
    held: bool = False


Question = Write | Weigh
Answer = Generation | list[float]  # to Write; to Weigh: log-probabilities in nats

T = TypeVar("T")
# Yields questions, is sent their answers, and returns what it made of them.
Interview = Generator[Question, Any, T]


class ParallelAnswers(Protocol):
    """Answers questions in several slots at once. An answer does not depend on the slot, nor on the other questions.

    A slot keeps its last conversation in memory, so that a question that goes on from it is answered sooner.
    """

    @property
    def slots(self) -> int:
        """How many questions may be open."""
        ...

    @property
    def arithmetic(self) -> str:
        """Names how the questions are computed together, where other bits can follow from it; else empty."""
        ...

    def submit(self, slot: int, question: Question) -> None:
        """Open a question in a slot that has none open."""
        ...

    def step(self) -> list[tuple[int, Answer]]:
        """Work on the open questions; those that are answered now, maybe none, with their slots."""
        ...


@runtime_checkable
class ParallelEngine(Protocol):
    """An engine that can answer several questions at once."""

    def answer_in_parallel(self, *, capped: bool) -> AbstractContextManager[ParallelAnswers]:
        """Room for questions that are all capped, or all uncapped."""
        ...


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
    return engine.score(
        question.messages,
        prefix=question.prefix,
        options=question.options,
        capped=question.capped,
        held=question.held,
    )


def hold(engine: Engine, interview: Interview[T]) -> T:
    """Ask one interview's questions, one after another; what it returns."""
    try:
        question = next(interview)
        while True:
            question = interview.send(ask(engine, question))
    except StopIteration as stop:
        result: T = stop.value
        return result
