"""The evaluator's task: how a request to rate is worded, the form of the answer, and how it is read off the model.

The same words are used for training rows, the gate and scoring, so that the model meets one format only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from karma_electric.conversation import Message
from karma_electric.errors import IntegrityError, shown

if TYPE_CHECKING:
    from karma_electric.engines.protocol import Engine

DIMENSIONS = ("Acknowledgment", "Helpfulness", "Authenticity", "Boundaries", "Suffering-reduction")
RED_FLAGS = "Red flags"
OVERALL = "Overall"
LOWEST_SCORE, HIGHEST_SCORE = 1, 10

_SCORES = range(LOWEST_SCORE, HIGHEST_SCORE + 1)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores from 1 to 10, the most probable whole number at each place; and the mean over the probabilities of the
    ten overall scores. The mean is recorded, never used to break a tie."""

    dimensions: dict[str, int]
    overall: int
    expected_overall: float


def evaluation_request(prompt: str, response: str) -> str:
    """The user turn that asks for a rating of `response` to `prompt`."""
    return f"Message from the person:\n{prompt.strip()}\n\nResponse to rate:\n{response.strip()}"


def evaluate(engine: Engine, evaluator_prompt: str, *, prompt: str, response: str) -> Evaluation:
    """Rate `response` with the form filled in by the model: scores only, so that the form cannot fail. Never capped.

    Raises IntegrityError when the engine's log-probabilities are no ten finite numbers.
    """
    messages = (
        Message(role="system", content=evaluator_prompt),
        Message(role="user", content=evaluation_request(prompt, response)),
    )
    options = [f"{score}/" for score in _SCORES]  # what follows the stroke is always 10
    written = ""
    dimensions: dict[str, int] = {}
    for name in DIMENSIONS:
        prefix = f"{written}{name}: "
        score, _ = _most_probable(engine.score(messages, prefix=prefix, options=options))
        dimensions[name] = score
        written = f"{prefix}{score}/10\n"
    overall, expected = _most_probable(engine.score(messages, prefix=f"{written}{OVERALL}: ", options=options))
    return Evaluation(dimensions=dimensions, overall=overall, expected_overall=expected)


def _most_probable(log_probabilities: list[float]) -> tuple[int, float]:
    """The score of the highest log-probability (the lower score of equal ones), and the mean score."""
    if len(log_probabilities) != len(_SCORES) or not all(map(math.isfinite, log_probabilities)):
        raise IntegrityError(
            f"the model's log-probabilities of the scores {LOWEST_SCORE} to {HIGHEST_SCORE} are "
            f"{shown(log_probabilities)}, expected finite numbers; the weights are damaged"
        )
    highest = max(log_probabilities)
    weights = [math.exp(value - highest) for value in log_probabilities]
    mean = sum(score * weight for score, weight in zip(_SCORES, weights, strict=True)) / sum(weights)
    return LOWEST_SCORE + log_probabilities.index(highest), mean
