"""The scheduler with a real engine: who shares a decode call, and what one failure takes with it."""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from karma_electric.conversation import Message
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.llama_cpp_decoder import LlamaCppDecoder, Row
from karma_electric.engines.sampling import Sampling
from karma_electric.errors import IntegrityError
from karma_electric.server.scheduler import Event, Failure, Job, Progress, QueueFullError, Scheduler, StoppingError
from tests.server.serving import SECONDS


class Asked:
    """A job and its events."""

    def __init__(self, engine: LlamaCppEngine, text: str, *, capped: bool, max_tokens: int = 8) -> None:
        self.messages = [Message("user", text)]
        self.capped, self.max_tokens = capped, max_tokens
        self.events: queue.Queue[Event] = queue.Queue()
        prompt = engine.prompt_token_ids(self.messages)
        answer = engine.new_answer(len(prompt), sampling=Sampling(), max_tokens=max_tokens)
        self.job = Job(prompt, answer, capped, self._take)
        self.begun = False

    def _take(self, event: Event) -> None:
        self.begun = True
        self.events.put(event)

    def result(self) -> str | Failure:
        text = ""
        while True:
            event = self.events.get(timeout=SECONDS)
            if isinstance(event, Failure):
                return event
            text += event.text
            if event.finish is not None:
                assert event.usage is not None
                assert event.usage.capped is self.capped
                return text

    def alone(self, engine: LlamaCppEngine) -> str:
        return engine.generate(self.messages, max_tokens=self.max_tokens, capped=self.capped).text


@contextmanager
def running(engine: LlamaCppEngine, *, parallel: int = 3, max_waiting: int = 9) -> Iterator[Scheduler]:
    scheduler = Scheduler(
        lambda capped: engine.open_slots(parallel, capped=capped), parallel=parallel, max_waiting=max_waiting
    )
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()


def test_no_decode_call_holds_two_requests_or_both_kinds(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Asked(engine, f"Tell me about river {n % 3}. " * 4, capped=bool(n % 2)) for n in range(8)]
    expected = [each.alone(engine) for each in asked]
    decode = LlamaCppDecoder.decode
    calls: list[tuple[bool, int]] = []

    def watched(self: LlamaCppDecoder, rows: Sequence[Row]) -> Any:
        assert len({row.sequences for row in rows}) == 1
        calls.append((self.callback is not None, rows[0].sequences[0]))
        return decode(self, rows)

    with running(engine) as scheduler:
        monkeypatch.setattr(LlamaCppDecoder, "decode", watched)
        for each in asked:
            scheduler.submit(each.job)
        assert [each.result() for each in asked] == expected
        assert len({slot for capped, slot in calls if capped}) > 1
        assert any(before != after for (before, _), (after, _) in itertools.pairwise(calls))
        assert scheduler.counts().finished == 8


def test_a_failed_decode_fails_its_kind_and_no_other(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    capped = [Asked(engine, text, capped=True, max_tokens=200) for text in ("Hello", "Hello there")]
    plain = Asked(engine, "Hello", capped=False, max_tokens=60)
    expected = plain.alone(engine)
    run = LlamaCppDecoder._run
    failures: list[int] = []

    def fails_once(self: LlamaCppDecoder, rows: Sequence[Row]) -> Any:
        if self.callback is not None and not failures and all(each.begun for each in capped):
            failures.append(rows[0].sequences[0])
            raise IntegrityError("the decode broke")
        return run(self, rows)

    monkeypatch.setattr(LlamaCppDecoder, "_run", fails_once)
    with running(engine) as scheduler:
        for each in (*capped, plain):
            scheduler.submit(each.job)
        assert [each.result() for each in capped] == [Failure(500, "the decode broke")] * 2
        assert plain.result() == expected
        again = Asked(engine, "Hello", capped=True)
        scheduler.submit(again.job)
        assert again.result() == again.alone(engine)


def test_a_queue_has_an_end_and_a_stop_fails_all(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Asked(engine, "Hello", capped=False) for _ in range(3)]
    goes_on = threading.Event()
    run = LlamaCppDecoder._run

    def waits(self: LlamaCppDecoder, rows: Sequence[Row]) -> Any:
        assert not asked[0].begun or goes_on.wait(SECONDS)
        return run(self, rows)

    monkeypatch.setattr(LlamaCppDecoder, "_run", waits)
    with running(engine, parallel=1, max_waiting=1) as scheduler:
        scheduler.submit(asked[0].job)
        assert isinstance(asked[0].events.get(timeout=SECONDS), Progress)
        scheduler.submit(asked[1].job)
        assert (scheduler.counts().running, scheduler.counts().waiting) == (1, 1)
        with pytest.raises(QueueFullError):
            scheduler.submit(asked[2].job)
        scheduler.begin_to_stop()
        goes_on.set()
    for each in asked[:2]:
        assert isinstance(each.result(), Failure)
    with pytest.raises(StoppingError):
        scheduler.submit(asked[2].job)
    assert (scheduler.counts().running, scheduler.counts().waiting) == (0, 0)


def test_a_cancelled_job_gives_its_slot_to_the_next(engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Asked(engine, "Hello", capped=False, max_tokens=900 if n == 0 else 8) for n in range(3)]
    run = LlamaCppDecoder._run

    def waits(self: LlamaCppDecoder, rows: Sequence[Row]) -> Any:
        assert not asked[0].begun or asked[0].job.cancelled.wait(SECONDS)
        return run(self, rows)

    monkeypatch.setattr(LlamaCppDecoder, "_run", waits)
    with running(engine, parallel=1) as scheduler:
        for each in asked:
            scheduler.submit(each.job)
        assert isinstance(asked[0].events.get(timeout=SECONDS), Progress)
        scheduler.cancel(asked[1].job)  # in line
        scheduler.cancel(asked[0].job)
        assert asked[2].result() == asked[2].alone(engine)
        counts = scheduler.counts()
        assert (counts.finished, counts.cancelled, counts.running, counts.waiting) == (3, 2, 0, 0)
    assert len(asked[0].job.answer.token_ids) < 5


def test_a_fault_of_the_scheduler_itself_leaves_nobody_waiting(engine: LlamaCppEngine) -> None:
    class Broken(Scheduler):
        def _advance(self, job: Job) -> None:
            raise KeyError("x")

    scheduler = Broken(lambda capped: engine.open_slots(1, capped=capped), parallel=1, max_waiting=1)
    asked = Asked(engine, "Hello", capped=False)
    scheduler.start()
    scheduler.submit(asked.job)
    failure = asked.result()
    assert isinstance(failure, Failure)
    assert failure.status == 500
    scheduler.stop()
    assert isinstance(scheduler.error, KeyError)
