"""One thread decodes for all requests in turn: one batch of one request at a time.

Capped and uncapped requests live in two contexts of llama.cpp, so that they can't share a decode call. Each of up to
`parallel` running requests has a sequence of its own; the others wait in line. No batch holds rows of two requests, so
each answer is, to the bit, what it would be alone.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.answer import AnswerStep, ChosenToken, Finish, GrowingAnswer
from karma_electric.engines.llama_cpp_sequence import TokenSequence
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import KarmaError

_logger = logging.getLogger(__name__)

OpenSlots = Callable[[bool], list[TokenSequence]]  # capped -> the sequences of a context


class QueueFullError(Exception):
    """As many requests wait as may wait."""


class StoppingError(Exception):
    """The server takes no more requests."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Text that was added, and the tokens chosen since the last progress (where they are measured)."""

    text: str
    chosen: tuple[ChosenToken, ...]
    finish: Finish | None
    usage: Usage | None  # with the last one


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int  # of the prompt, that were in memory
    capped: bool
    cap: CapActivity


@dataclass(frozen=True, slots=True)
class Failure:
    """The answer will not come. `status` is of HTTP."""

    status: int
    message: str


Event = Progress | Failure


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way: what to answer, and `emit`, which takes its events on the scheduler's thread."""

    prompt: list[int]
    answer: GrowingAnswer
    capped: bool
    emit: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    slot: TokenSequence | None = None
    cached_tokens: int = 0
    next_token: int | None = None  # to be decoded; None while the prompt is read
    reported: int = 0  # of answer.chosen


@dataclass(frozen=True, slots=True)
class Counts:
    """How busy the server is."""

    running: int
    waiting: int
    finished: int  # answered, failed or given up
    cancelled: int  # of these, given up because the client went away


class Scheduler:
    """Runs jobs on a thread of its own, from `start` to `stop`."""

    def __init__(self, open_slots: OpenSlots, *, parallel: int, max_waiting: int) -> None:
        self.parallel: Final = parallel
        self.max_waiting: Final = max_waiting
        self.error: BaseException | None = None  # what ended the thread, if anything did
        self._open_slots = open_slots
        self._slots: dict[bool, list[TokenSequence]] = {}
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: list[Job] = []
        self._finished = self._cancelled = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job in line. Raises QueueFullError, or StoppingError after `begin_to_stop`."""
        with self._changed:
            if self._stopping:
                raise StoppingError
            idle = self.parallel - len(self._running)
            if len(self._waiting) >= self.max_waiting + idle:
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Give up a job; its slot is free after the batch that is being decoded. A finished job stays as it is."""
        job.cancelled.set()
        with self._changed:
            self._changed.notify_all()

    def counts(self) -> Counts:
        """Of this moment."""
        with self._changed:
            return Counts(len(self._running), len(self._waiting), self._finished, self._cancelled)

    def begin_to_stop(self) -> None:
        """Take nothing more, and fail what is on its way. Safe in a signal handler: it takes no lock."""
        self._stopping = True

    def stop(self) -> None:
        """`begin_to_stop`, and wait until the thread has ended."""
        self.begin_to_stop()
        with self._changed:
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        failure = Failure(503, "the server is shutting down")
        try:
            while not self._stopping:
                self._admit()
                for job in list(self._running):
                    if not self._stopping:
                        self._advance(job)
        except BaseException as error:  # a fault of ours: nobody may wait for ever
            self.error = error
            failure = Failure(500, "the server failed; its log says why")
        finally:
            self._stopping = True
            with self._changed:
                left = [*self._running, *self._waiting]
                self._running.clear()
                self._waiting.clear()
            for job in left:
                job.emit(failure)

    def _admit(self) -> None:
        """Wait for work, drop what was cancelled, and give free slots to those who are first in line."""
        with self._changed:
            while not (self._running or self._waiting or self._stopping):
                self._changed.wait(timeout=0.5)  # bounded, because `begin_to_stop` cannot notify
            for job in [job for job in (*self._running, *self._waiting) if job.cancelled.is_set()]:
                self._leave(job, cancelled=True)
            admitted = []
            while self._waiting and len(self._running) < self.parallel:
                admitted.append(self._waiting.popleft())
                self._running.append(admitted[-1])
        for job in admitted:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        """Give a job the free sequence that shares most with its prompt."""
        try:
            if job.capped not in self._slots:
                self._slots[job.capped] = self._open_slots(job.capped)
            taken = [other.slot for other in self._running]
            free = [slot for slot in self._slots[job.capped] if slot not in taken]
            job.slot = max(free, key=lambda slot: slot.shared_length(job.prompt))
            job.cached_tokens = job.slot.start(job.prompt)
        except Exception as error:
            self._fail([job], error)

    def _advance(self, job: Job) -> None:
        """Decode one batch of one job."""
        if job.cancelled.is_set() or job not in self._running or job.slot is None:
            return
        try:
            logits = self._decode(job, job.slot)
            if logits is not None:
                self._take(job, job.slot, job.answer.take(logits))
        except Exception as error:  # the memory of the whole context is lost
            self._fail([other for other in self._running if other.capped == job.capped], error)

    def _decode(self, job: Job, slot: TokenSequence) -> NDArray[np.float32] | None:
        """The logits for the next token, (vocab_size,); None while the prompt is not read to its end."""
        if job.next_token is None:
            return slot.read_on()
        logits: NDArray[np.float32] = slot.extend([job.next_token])[-1]
        return logits

    def _take(self, job: Job, slot: TokenSequence, step: AnswerStep) -> None:
        job.next_token = step.token
        finish = job.answer.finish
        chosen = tuple(job.answer.chosen[job.reported :])
        if not (step.text or chosen or finish):
            return
        job.reported += len(chosen)
        usage = None
        if finish is not None:
            tokens = len(job.answer.token_ids)
            usage = Usage(len(job.prompt), tokens, job.cached_tokens, job.capped, slot.activity)
            with self._changed:
                self._leave(job)
        job.emit(Progress(step.text, chosen, finish, usage))

    def _fail(self, jobs: list[Job], error: Exception) -> None:
        if not isinstance(error, KarmaError):
            _logger.error("a decode failed", exc_info=error)
        message = str(error) if isinstance(error, KarmaError) else "the server failed; its log says why"
        with self._changed:
            for job in jobs:
                self._leave(job)
        for job in jobs:
            job.emit(Failure(500, message))

    def _leave(self, job: Job, *, cancelled: bool = False) -> None:
        """Take a job off the lists; its slot is free. The lock is held."""
        (self._running if job in self._running else self._waiting).remove(job)
        job.slot = None
        self._finished += 1
        self._cancelled += cancelled
