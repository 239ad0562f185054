"""A stand-in for a model that fails on demand: answers and scores follow from functions, by the engine's protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from karma_electric.conversation import Message
from karma_electric.engines.protocol import CapActivity, EngineIdentity, Generation

IDENTITY = EngineIdentity(engine="scripted", build="1", weights_sha256="a" * 64, axis_sha256="b" * 64)

FORM = (
    "Acknowledgment: 7/10 - a\nHelpfulness: 6/10 - b\nAuthenticity: 8/10 - c\nBoundaries: 7/10 - d\n"
    "Suffering-reduction: 6/10 - e\nRed flags: none\nOverall: 7/10 - f"
)

_REQUEST = re.compile(r"Message from the person:\n(.*)\n\nResponse to rate:\n(.*)", re.DOTALL)


def peaked(score: int) -> list[float]:
    """Log-probabilities of which that of `score` is the highest."""
    return [-0.5 - abs(other - score) for other in range(1, 11)]


def always(score: int) -> Callable[[str, str], list[float]]:
    return lambda prompt, response: peaked(score)


def saying(text: str) -> Callable[[Sequence[Message], bool], str]:
    return lambda messages, capped: text


def always_first(question: str, options: Sequence[str], capped: bool) -> list[float]:
    return [-float(place) for place in range(len(options))]


@dataclass
class ScriptedEngine:
    """`scores` (prompt, response) -> log-probabilities of 1/ to 10/; `answers` (messages, capped) -> text; `choices`
    (question, options, capped) -> log-probabilities; `form` (prompt, response) -> a rating written without the form."""

    scores: Callable[[str, str], list[float]] = field(default_factory=lambda: always(8))
    answers: Callable[[Sequence[Message], bool], str] = field(default_factory=lambda: saying("No."))
    choices: Callable[[str, Sequence[str], bool], list[float]] = field(default_factory=lambda: always_first)
    form: Callable[[str, str], str] = field(default_factory=lambda: lambda prompt, response: FORM)
    reason: str = " plain words"
    cap_acts: bool = True
    claimed: bool = False
    prefixes: list[str] = field(default_factory=list)  # of every score that was asked
    conversations: list[list[Message]] = field(default_factory=list)  # of every answer that was asked

    @property
    def identity(self) -> EngineIdentity:
        return replace(IDENTITY, claimed=self.claimed)

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        return list(text.encode("utf-8"))

    def generate(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        capped: bool = False,
        prefix: str = "",
        stop: Sequence[str] = (),
    ) -> Generation:
        assert messages[-1].role == "user"
        if request := _REQUEST.fullmatch(messages[-1].content):
            assert not capped, "the evaluator is never capped"
            text = self.reason if prefix else self.form(request[1], request[2])
            assert not prefix or tuple(stop) == ("\n",)
        else:
            self.conversations.append(list(messages))
            text = self.answers(messages, capped)
        activity = CapActivity(positions=8, fired=2) if capped and self.cap_acts else CapActivity(0, 0)
        return Generation(text=text, token_ids=(), finish="stop", prompt_tokens=4, cap=activity)

    def score(
        self,
        messages: Sequence[Message],
        *,
        prefix: str,
        options: Sequence[str],
        capped: bool = False,
        held: bool = False,
    ) -> list[float]:
        request = _REQUEST.fullmatch(messages[-1].content)
        if request is None:
            return self.choices(messages[-1].content, options, capped)
        assert not capped, "the evaluator is never capped"
        assert held, "a score is written under the form"
        assert list(options) == [f"{score}/" for score in range(1, 11)]
        self.prefixes.append(prefix)
        return self.scores(request[1], request[2])

    def close(self) -> None:
        """Nothing to free."""
