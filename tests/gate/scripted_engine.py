"""A stand-in for a model that fails on demand: answers and scores follow from functions, by the engine's protocol."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from karma_electric.conversation import Message
from karma_electric.engines.protocol import CapActivity, EngineIdentity, Generation

IDENTITY = EngineIdentity(engine="scripted", build="1", weights_sha256="a" * 64, axis_sha256="b" * 64)

_REQUEST = re.compile(r"Message from the person:\n(.*)\n\nResponse to rate:\n(.*)", re.DOTALL)


def peaked(score: int) -> list[float]:
    """Log-probabilities of which that of `score` is the highest."""
    return [-0.5 - abs(other - score) for other in range(1, 11)]


def always(score: int) -> Callable[[str, str], list[float]]:
    return lambda prompt, response: peaked(score)


def saying(text: str) -> Callable[[Sequence[Message], bool], str]:
    return lambda messages, capped: text


@dataclass
class ScriptedEngine:
    """`scores` (prompt, response) -> log-probabilities of 1/ to 10/; `answers` (messages, capped) -> text."""

    scores: Callable[[str, str], list[float]] = field(default_factory=lambda: always(8))
    answers: Callable[[Sequence[Message], bool], str] = field(default_factory=lambda: saying("No."))
    cap_acts: bool = True
    prefixes: list[str] = field(default_factory=list)  # of every score that was asked
    conversations: list[list[Message]] = field(default_factory=list)  # of every answer that was asked

    @property
    def identity(self) -> EngineIdentity:
        return IDENTITY

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        return list(text.encode("utf-8"))

    def generate(self, messages: Sequence[Message], *, max_tokens: int, capped: bool = False) -> Generation:
        self.conversations.append(list(messages))
        assert messages[-1].role == "user"
        text = self.answers(messages, capped)
        activity = CapActivity(positions=8, fired=2) if capped and self.cap_acts else CapActivity(0, 0)
        return Generation(text=text, token_ids=(), finish="stop", prompt_tokens=4, cap=activity)

    def score(
        self, messages: Sequence[Message], *, prefix: str, options: Sequence[str], capped: bool = False
    ) -> list[float]:
        assert not capped, "the evaluator is never capped"
        assert list(options) == [f"{score}/" for score in range(1, 11)]
        self.prefixes.append(prefix)
        request = _REQUEST.fullmatch(messages[-1].content)
        assert request is not None, messages[-1].content
        return self.scores(request[1], request[2])

    def close(self) -> None:
        """Nothing to free."""
