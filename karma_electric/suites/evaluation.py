"""The evaluator's task: how a request to rate is worded, the form of the answer, and how it is read off the model.

The same words are used for training rows, the gate and scoring, so that the model meets one format only. The form is
a grammar: its fixed text is given, its numbers are the most probable ones from 1 to 10, and its reasons are free text
of bounded length up to the end of the line. So a rating under the form always parses; `parse_evaluation` reads what
the model writes without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from karma_electric.canonical import rounded
from karma_electric.conversation import Message
from karma_electric.engines.protocol import Generation
from karma_electric.engines.questions import Interview, Weigh, Write
from karma_electric.errors import IntegrityError, shown

DIMENSIONS = ("Acknowledgment", "Helpfulness", "Authenticity", "Boundaries", "Suffering-reduction")
RED_FLAGS = "Red flags"
OVERALL = "Overall"
LOWEST_SCORE, HIGHEST_SCORE = 1, 10
REASON_TOKENS = 12  # of each of the seven texts: with the form itself, at most 160 tokens
FREE_TOKENS = 160  # of an answer without the form

_SCORES = range(LOWEST_SCORE, HIGHEST_SCORE + 1)
_OPTIONS = tuple(f"{score}/" for score in _SCORES)  # what follows the stroke is always 10
_LINE = r"{name}:[ \t]*(10|[1-9])/10(?:[ \t]+[-\u2013\u2014][ \t]*\S[^\n]*)?"
_FORM = re.compile(
    r"\s*"
    + r"\s*\n\s*".join(_LINE.format(name=re.escape(name)) for name in DIMENSIONS)
    + rf"\s*\n\s*{RED_FLAGS}:[^\n]*\n\s*"
    + _LINE.format(name=OVERALL)
    + r"\s*"
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores from 1 to 10, the most probable whole number at each place; and the mean over the probabilities of the
    ten overall scores, None where the engine gives none. The mean is recorded, never used to break a tie. `text` is
    the form as filled in."""

    dimensions: dict[str, int]
    overall: int
    expected_overall: float | None
    text: str

    def as_row(self) -> dict[str, Any]:
        expected = self.expected_overall
        return asdict(self) | {"expected_overall": None if expected is None else rounded(expected)}


@dataclass(frozen=True, slots=True)
class NotRated:
    """No rating, and why. `text` is what the model wrote, if it was asked."""

    reason: Literal["control tokens", "unreadable"]
    text: str = ""

    def as_row(self) -> dict[str, Any]:
        return {"dimensions": {}, "overall": None, "expected_overall": None, "text": self.text, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class ParsedEvaluation:
    """The scores in an answer that the model wrote without the form."""

    dimensions: dict[str, int]
    overall: int


def evaluation_request(prompt: str, response: str) -> str:
    """The user turn that asks for a rating of `response` to `prompt`."""
    return f"Message from the person:\n{prompt.strip()}\n\nResponse to rate:\n{response.strip()}"


def evaluation_messages(evaluator_prompt: str, *, prompt: str, response: str) -> tuple[Message, ...]:
    """The conversation that asks for a rating."""
    return (
        Message(role="system", content=evaluator_prompt),
        Message(role="user", content=evaluation_request(prompt, response)),
    )


def evaluate(
    evaluator_prompt: str,
    *,
    prompt: str,
    response: str,
    reasons: bool,
    is_plain: Callable[[str], bool],
    held: bool = True,
) -> Interview[Evaluation | NotRated]:
    """Rate `response` in the form, with the model's reasons or with scores only. Never capped.

    Texts that are not plain, but hold control tokens of the model, are not asked about: they could end the evaluator's
    turn and write a rating of their own. An engine that cannot be `held` to the form writes it, with reasons, and what
    cannot be read is no rating. Raises IntegrityError when the engine's log-probabilities are no ten finite numbers.
    """
    if not (is_plain(prompt) and is_plain(response)):
        return NotRated("control tokens")
    messages = evaluation_messages(evaluator_prompt, prompt=prompt, response=response)
    if not held:
        return _read((yield Write(messages, FREE_TOKENS)))
    return (yield from _fill_in(messages, reasons=reasons))


def _fill_in(messages: tuple[Message, ...], *, reasons: bool) -> Interview[Evaluation]:
    written = ""
    dimensions: dict[str, int] = {}
    for name in DIMENSIONS:
        dimensions[name], _, written = yield from _score_line(messages, written, name, reasons=reasons)
    if reasons:
        flags = yield from _free_text(messages, f"{written}{RED_FLAGS}:")
        written = f"{written}{RED_FLAGS}:{flags}\n"
    overall, expected, written = yield from _score_line(messages, written, OVERALL, reasons=reasons)
    return Evaluation(dimensions=dimensions, overall=overall, expected_overall=expected, text=written)


def _read(generation: Generation) -> Evaluation | NotRated:
    parsed = parse_evaluation(generation.text) if generation.finish == "stop" else None
    if parsed is None:
        return NotRated("unreadable", generation.text)
    return Evaluation(parsed.dimensions, parsed.overall, None, generation.text)


def parse_evaluation(text: str) -> ParsedEvaluation | None:
    """The scores of an answer in the full form, and nothing else around it; None when it is anything else."""
    if not (found := _FORM.fullmatch(text)):
        return None
    scores = [int(score) for score in found.groups()]
    return ParsedEvaluation(dimensions=dict(zip(DIMENSIONS, scores, strict=False)), overall=scores[-1])


def _score_line(
    messages: tuple[Message, ...], written: str, name: str, *, reasons: bool
) -> Interview[tuple[int, float, str]]:
    """One line of the form: its score, the mean over the scores' probabilities, and the form up to its end."""
    prefix = f"{written}{name}: "
    score, expected = _most_probable((yield Weigh(messages, _OPTIONS, prefix=prefix, held=True)))
    line = f"{prefix}{score}/10"
    if reasons:
        reason = yield from _free_text(messages, f"{line} -")
        line = f"{line} -{reason}" if reason else line
    return score, expected, f"{line}\n"


def _free_text(messages: tuple[Message, ...], prefix: str) -> Interview[str]:
    generation: Generation = yield Write(messages, REASON_TOKENS, prefix=prefix, stop=("\n",))
    return generation.text.split("\n", 1)[0].rstrip()


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
