"""The simulation: rewards of two generators, iteration by iteration, and how still they hold."""

from __future__ import annotations

import statistics
from collections.abc import Generator as Stream
from collections.abc import Sequence

import pytest

from karma_electric.conversation import Message
from karma_electric.engines.protocol import CapActivity, EngineIdentity, StreamedToken
from karma_electric.engines.sampling import Sampling
from karma_electric.errors import InputError
from karma_electric.reward_simulation import Generator, Simulation, SimulationParams, simulate
from tests.gate.scripted_engine import IDENTITY, ScriptedEngine, peaked

PARAMS = SimulationParams(iterations=3, temperature=0.8, top_p=0.9, max_tokens=16, seed=5)
QUESTIONS = ["one", "two", "three", "four"]


class Answering:
    """Answers with a fixed number of words, plus what the seed adds; remembers what it was asked."""

    def __init__(self, words: int, spread: int = 0, text: str = "word") -> None:
        self.words, self.spread, self.text = words, spread, text
        self.seeds: list[int | None] = []
        self.asked: list[tuple[str, bool]] = []

    @property
    def identity(self) -> EngineIdentity:
        return IDENTITY

    def stream(
        self, messages: Sequence[Message], *, sampling: Sampling, max_tokens: int | None = None, capped: bool = False
    ) -> Stream[StreamedToken, None, None]:
        assert [message.role for message in messages] == ["system", "user"]
        assert sampling.seed is not None
        self.seeds.append(sampling.seed)
        self.asked.append((messages[-1].content, capped))
        extra = sampling.seed % (self.spread + 1)
        for _ in range(self.words + extra):
            yield StreamedToken(f"{self.text} ", 1, None, CapActivity(0, 0), None)

    def close(self) -> None:
        """Nothing to free."""


def by_length(prompt: str, response: str) -> list[float]:
    return peaked(len(response.split()))


def run(first: Answering, second: Answering, params: SimulationParams = PARAMS) -> Simulation:
    return simulate(
        ScriptedEngine(scores=by_length),
        Generator("first", first),
        Generator("second", second, capped=True),
        questions=QUESTIONS,
        persona_prompt="p",
        evaluator_prompt="Rate.",
        params=params,
        report=lambda line: None,
    )


def test_constant_rewards_hold_still_and_differ_by_what_they_differ() -> None:
    found = run(Answering(3), Answering(5)).as_row()
    first, second = found["generators"]
    assert (first["mean"], first["std"], first["std_of_iteration_means"]) == (3, 0, 0)
    assert (second["mean"], second["answers"]) == (5, 12)
    assert (found["difference"], found["low"], found["high"]) == (2, 2, 2)


def test_the_figures_are_those_of_the_rewards() -> None:
    simulation = run(Answering(2, spread=5), Answering(4))
    rewards, row = simulation.first.rewards, simulation.first.as_row()
    assert [len(each) for each in rewards] == [4, 4, 4]
    every = [reward for each in rewards for reward in each]
    assert len(set(every)) > 2
    assert row["mean"] == pytest.approx(statistics.fmean(every), rel=1e-5)
    assert row["std"] == pytest.approx(statistics.stdev(every), rel=1e-5)
    means = [statistics.fmean(each) for each in rewards]
    assert row["iteration_means"] == pytest.approx(means, rel=1e-5)
    assert row["std_of_iteration_means"] == pytest.approx(statistics.stdev(means), rel=1e-5)
    columns = [statistics.stdev(column) for column in zip(*rewards, strict=True)]
    assert row["mean_std_of_a_question"] == pytest.approx(statistics.fmean(columns), rel=1e-5)
    assert simulation.interval.low <= simulation.difference <= simulation.interval.high


def test_every_answer_has_its_own_seed_which_both_generators_get() -> None:
    first, second = Answering(2), Answering(2)
    run(first, second)
    assert len(set(first.seeds)) == len(first.seeds) == 12
    assert first.seeds == second.seeds
    assert {capped for _, capped in first.asked} == {False}
    assert {capped for _, capped in second.asked} == {True}
    assert [question for question, _ in first.asked] == QUESTIONS * 3


def test_the_same_seed_gives_the_same_numbers_and_another_one_others() -> None:
    once = run(Answering(2, spread=5), Answering(4)).as_row()
    assert run(Answering(2, spread=5), Answering(4)).as_row() == once
    other = SimulationParams(iterations=3, temperature=0.8, top_p=0.9, max_tokens=16, seed=6)
    assert run(Answering(2, spread=5), Answering(4), other).as_row() != once


def test_blocked_and_empty_answers_are_counted_and_get_nothing() -> None:
    simulation = run(Answering(1, text="Kill yourself."), Answering(0))
    assert (simulation.first.blocked, simulation.first.as_row()["mean"]) == (12, 0)
    assert (simulation.second.empty, simulation.second.as_row()["mean"]) == (12, 0)


def test_one_iteration_has_no_spread() -> None:
    with pytest.raises(InputError, match="at least 2"):
        run(Answering(1), Answering(2), SimulationParams(1, 0.8, 0.9, 16, 0))


def test_two_generators_of_one_name_are_refused() -> None:
    with pytest.raises(InputError, match="give them two names"):
        simulate(
            ScriptedEngine(),
            Generator("same", Answering(1)),
            Generator("same", Answering(2)),
            questions=QUESTIONS,
            persona_prompt="p",
            evaluator_prompt="Rate.",
            params=PARAMS,
            report=lambda line: None,
        )
