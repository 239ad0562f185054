"""Many interviews held at once, in an order in which little is read twice."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol

from karma_electric.engines.protocol import Engine
from karma_electric.engines.questions import Answer, Interview, ParallelAnswers, ParallelEngine, Question, T, ask


class AnswerMemory(Protocol):
    """What was answered before."""

    def get(self, question: Question) -> Answer | None:
        """The answer, if it is known."""
        ...

    def put(self, question: Question, answer: Answer) -> None:
        """Keep an answer."""
        ...


class OneAtATime:
    """An engine that answers one question after another, as ParallelAnswers."""

    slots = 1
    arithmetic = ""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._question: Question | None = None

    def submit(self, slot: int, question: Question) -> None:
        self._question = question

    def step(self) -> list[tuple[int, Answer]]:
        question, self._question = self._question, None
        return [] if question is None else [(0, ask(self._engine, question))]


@contextlib.contextmanager
def parallel_answers(engine: Engine, *, capped: bool) -> Iterator[ParallelAnswers]:
    """As many slots as the engine has for questions that are all capped, or all uncapped."""
    if isinstance(engine, ParallelEngine):
        with engine.answer_in_parallel(capped=capped) as answers:
            yield answers
    else:
        yield OneAtATime(engine)


@dataclass
class _Open(Generic[T]):
    """An interview that waits for an answer."""

    place: int  # among all interviews
    interview: Interview[T]
    question: Question


def hold_all(
    answers: ParallelAnswers,
    interviews: Sequence[Interview[T]],
    *,
    memory: AnswerMemory,
    finished: Callable[[int, T], None],
) -> None:
    """Hold all interviews; `finished` gets the place and the result of each one, in the order in which they end.

    An interview keeps to its slot. The next one in a slot is the one that shares most with what the slot read last.
    """
    begun = (_advance(place, interview, None, memory, finished) for place, interview in enumerate(interviews))
    waiting = [opened for opened in begun if opened is not None]
    waiting.sort(key=lambda each: (_text(each.question), each.place))
    running: dict[int, _Open[T]] = {}
    last: dict[int, str] = {}  # slot -> what it read
    while waiting or running:
        for slot in range(answers.slots):
            if waiting and slot not in running:
                running[slot] = waiting.pop(_next_place(waiting, last.get(slot), slot, answers.slots))
                answers.submit(slot, running[slot].question)
        for slot, answer in answers.step():
            opened = running.pop(slot)
            last[slot] = _text(opened.question)
            memory.put(opened.question, answer)
            if going_on := _advance(opened.place, opened.interview, answer, memory, finished):
                running[slot] = going_on
                answers.submit(slot, going_on.question)


def _advance(
    place: int,
    interview: Interview[T],
    answer: Answer | None,
    memory: AnswerMemory,
    finished: Callable[[int, T], None],
) -> _Open[T] | None:
    """Send an answer (None begins), and those that are known; the interview with a question that is not, or None."""
    try:
        question = interview.send(answer)
        while (known := memory.get(question)) is not None:
            question = interview.send(known)
    except StopIteration as stop:
        finished(place, stop.value)
        return None
    return _Open(place, interview, question)


def _next_place(waiting: Sequence[_Open[T]], last: str | None, slot: int, slots: int) -> int:
    """Where in `waiting`, which is sorted, the interview stands that a slot is to begin: next to what it read last;
    at first, the slots begin apart from each other."""
    if last is None:
        return len(waiting) * slot // slots
    after = bisect.bisect_left(waiting, last, key=lambda each: _text(each.question))
    near = [place for place in (after, after - 1) if 0 <= place < len(waiting)]
    return max(near, key=lambda place: _shared_length(_text(waiting[place].question), last))


def _shared_length(one: str, other: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _text(question: Question) -> str:
    """The conversation as one text, of which a part that two questions share comes first."""
    turns = (f"{message.role}\n{message.content}\n" for message in question.messages)
    return "".join(turns) + question.prefix
