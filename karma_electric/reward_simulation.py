"""Would the reward hold still under reinforcement learning? Two generators answer the same questions again and again.

Each iteration asks every question of both generators, with sampling, and scores the answers as training would
(karma_electric.rewards). A reward that is worth optimising tells the generators apart, and gives about the same means
in every iteration. Same engines, questions and seed, same numbers.
"""

from __future__ import annotations

import contextlib
import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from karma_electric.canonical import rounded
from karma_electric.conversation import Message
from karma_electric.engines.protocol import ChatEngine, Engine
from karma_electric.engines.sampling import Sampling
from karma_electric.errors import InputError
from karma_electric.gate.intervals import Interval, mean_interval
from karma_electric.rewards import Scored, score_response


@dataclass(frozen=True)
class Generator:
    """What answers in the simulation."""

    name: str
    engine: ChatEngine
    capped: bool = False


@dataclass(frozen=True, slots=True)
class SimulationParams:
    """The size of the simulation and how answers are sampled."""

    iterations: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    confidence: float = 0.95


@dataclass(frozen=True)
class GeneratorResult:
    """Rewards of one generator, [iteration][question], from 0 to 10."""

    name: str
    rewards: list[list[float]]
    blocked: int  # answers with a hard block
    empty: int

    @property
    def iteration_means(self) -> list[float]:
        return [statistics.fmean(row) for row in self.rewards]

    @property
    def question_means(self) -> list[float]:
        return [statistics.fmean(column) for column in zip(*self.rewards, strict=True)]

    def as_row(self) -> dict[str, Any]:
        """As JSON holds it; standard deviations are those of samples (n - 1)."""
        every = [reward for row in self.rewards for reward in row]
        columns = [list(column) for column in zip(*self.rewards, strict=True)]
        return {
            "name": self.name,
            "answers": len(every),
            "mean": rounded(statistics.fmean(every)),
            "std": rounded(_std(every)),
            "iteration_means": [rounded(mean) for mean in self.iteration_means],
            "std_of_iteration_means": rounded(_std(self.iteration_means)),
            "mean_std_of_a_question": rounded(statistics.fmean(_std(column) for column in columns)),
            "blocked": self.blocked,
            "empty": self.empty,
        }


@dataclass(frozen=True)
class Simulation:
    """Both generators, and the second's mean reward less the first's, by question, with its bootstrap interval."""

    first: GeneratorResult
    second: GeneratorResult
    difference: float
    interval: Interval

    def as_row(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "generators": [self.first.as_row(), self.second.as_row()],
            "difference": rounded(self.difference),
            "low": rounded(self.interval.low),
            "high": rounded(self.interval.high),
        }


def simulate(
    rater: Engine,
    first: Generator,
    second: Generator,
    *,
    questions: Sequence[str],
    persona_prompt: str,
    evaluator_prompt: str,
    params: SimulationParams,
    report: Callable[[str], None],
) -> Simulation:
    """Run the simulation. Raises InputError for fewer than two questions or two iterations: they have no spread."""
    if len(questions) < 2 or params.iterations < 2:
        raise InputError(
            f"{len(questions)} questions and {params.iterations} iterations, expected at least 2 of each for a spread"
        )
    scored: dict[str, list[list[Scored]]] = {first.name: [], second.name: []}
    if len(scored) < 2:
        raise InputError(f"both generators are called {first.name!r}; give them two names")
    for iteration in range(params.iterations):
        for generator in (first, second):
            row = []
            for number, question in enumerate(questions):
                sampling = Sampling(params.temperature, params.top_p, _seed(params.seed, iteration, number))
                answer = _answer(generator, persona_prompt, question, sampling, params.max_tokens)
                row.append(score_response(rater, evaluator_prompt, prompt=question, response=answer))
            scored[generator.name].append(row)
            mean = statistics.fmean(each.reward for each in row)
            report(f"iteration {iteration + 1} of {params.iterations}, {generator.name}: mean reward {mean:.2f}")
    results = [_result(name, rows) for name, rows in scored.items()]
    changes = [b - a for a, b in zip(results[0].question_means, results[1].question_means, strict=True)]
    interval = mean_interval(changes, confidence=params.confidence)
    return Simulation(results[0], results[1], statistics.fmean(changes), interval)


def _answer(generator: Generator, persona: str, question: str, sampling: Sampling, max_tokens: int) -> str:
    messages = [Message("system", persona), Message("user", question)]
    parts = generator.engine.stream(messages, sampling=sampling, max_tokens=max_tokens, capped=generator.capped)
    with contextlib.closing(parts):
        return "".join(part.text for part in parts)


def _result(name: str, rows: list[list[Scored]]) -> GeneratorResult:
    every = [scored for row in rows for scored in row]
    return GeneratorResult(
        name,
        [[scored.reward for scored in row] for row in rows],
        blocked=sum(scored.judgement.hard_block for scored in every),
        empty=sum(scored.raw is None for scored in every),
    )


def _seed(seed: int, iteration: int, question: int) -> int:
    """Another one for each answer; both generators get the same."""
    return int.from_bytes(hashlib.sha256(f"{seed} {iteration} {question}".encode()).digest()[:7], "big")


def _std(values: Sequence[float]) -> float:
    return statistics.stdev(values)
