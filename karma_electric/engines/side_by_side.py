"""Several ParallelAnswers that work at the same time, each in a thread of its own, as one with all of their slots."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait

from karma_electric.engines.questions import Answer, ParallelAnswers, Question


class SideBySide:
    """Implements ParallelAnswers. The parts have the same model and arithmetic, and share nothing that changes.

    What fails in one part is raised by `step`.
    """

    def __init__(self, parts: Sequence[ParallelAnswers], pool: Executor) -> None:
        self._parts = parts
        self._pool = pool
        self._places = [(part, slot) for part in range(len(parts)) for slot in range(parts[part].slots)]  # by our slot
        self._waiting: list[list[tuple[int, Question]]] = [[] for _ in parts]
        self._open = [0] * len(parts)  # questions that are submitted and not answered
        self._working: dict[Future[list[tuple[int, Answer]]], int] = {}  # with its part
        self.slots = len(self._places)
        self.arithmetic = parts[0].arithmetic

    def submit(self, slot: int, question: Question) -> None:
        """Open a question; it is begun with the next step."""
        part, place = self._places[slot]
        self._waiting[part].append((place, question))
        self._open[part] += 1

    def step(self) -> list[tuple[int, Answer]]:
        """Let every part go on that has open questions; what is answered by those that are done first."""
        for part in {*range(len(self._parts))} - {*self._working.values()}:
            if self._open[part]:
                questions, self._waiting[part] = self._waiting[part], []
                self._working[self._pool.submit(_work, self._parts[part], questions)] = part
        answered = []
        for done in wait(self._working, return_when=FIRST_COMPLETED).done:
            part = self._working.pop(done)
            for place, answer in done.result():
                self._open[part] -= 1
                answered.append((self._places.index((part, place)), answer))
        return answered


def _work(part: ParallelAnswers, questions: Sequence[tuple[int, Question]]) -> list[tuple[int, Answer]]:
    for slot, question in questions:
        part.submit(slot, question)
    return part.step()


@contextlib.contextmanager
def side_by_side(parts: Sequence[ParallelAnswers]) -> Iterator[ParallelAnswers]:
    """The parts as one; where there is one part, it itself."""
    if len(parts) == 1:
        yield parts[0]
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        yield SideBySide(parts, pool)
