"""An answer that grows token by token: its text, where it stops, and what each token weighed."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from karma_electric.engines.sampling import Sampler, Sampling, log_softmax

Finish = Literal["stop", "length"]


class TextDecoder(Protocol):
    """Turns tokens into text as they come; what may still change is held back."""

    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""
        ...

    def flush(self) -> str:
        """What was held back."""
        ...


@dataclass(frozen=True, slots=True)
class LogProbability:
    """Of one token after those before it, in nats, before temperature and top_p."""

    token: int
    value: float


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token, its log-probability, and the likeliest tokens in its place, where they were asked for."""

    chosen: LogProbability
    likeliest: tuple[LogProbability, ...]


@dataclass(frozen=True, slots=True)
class AnswerStep:
    """What one step added: the token (None at an end token) and the text that is certain since."""

    token: int | None
    text: str


class GrowingAnswer:
    """Takes logits, gives tokens, until an end token, a stop text or `max_tokens` ends it.

    A stop text is not part of the answer. `text` so far may lack an end that could be the beginning of a stop text.
    `top_log_probabilities` None measures none; a number measures each token and so many of the likeliest.
    """

    def __init__(
        self,
        text_decoder: TextDecoder,
        ends_generation: Callable[[int], bool],
        *,
        sampling: Sampling,
        max_tokens: int,
        stop: Sequence[str] = (),
        top_log_probabilities: int | None = None,
    ) -> None:
        self.token_ids: list[int] = []  # without the end token
        self.finish: Finish | None = None
        self.chosen: list[ChosenToken] = []  # one for each of token_ids, where log-probabilities are measured
        self._text_decoder = text_decoder
        self._ends_generation = ends_generation
        self._sampler = Sampler(sampling)
        self._max_tokens = max_tokens
        self._stop = tuple(stop)
        self._top = top_log_probabilities
        self._held = ""

    def take(self, logits: NDArray[np.float32]) -> AnswerStep:
        """Choose the next token from logits (vocab_size,); afterwards `finish` says whether it was the last."""
        token = self._sampler.choose(logits)
        if self._ends_generation(token):
            return AnswerStep(None, self._release(self._text_decoder.flush(), "stop"))
        self.token_ids.append(token)
        if self._top is not None:
            self.chosen.append(_measure(logits, token, self._top))
        new = self._text_decoder.push(token)
        if len(self.token_ids) == self._max_tokens:
            return AnswerStep(token, self._release(new + self._text_decoder.flush(), "length"))
        return AnswerStep(token, self._release(new, None))

    def _release(self, new: str, finish: Finish | None) -> str:
        """The text up to a stop text, or all that can be in none; `finish` is why this is the end."""
        text = self._held + new
        places = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.finish, self._held = "stop", ""
            return text[: min(places)]
        self.finish = finish
        keep = 0 if finish else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


class Utf8Decoder:
    """Text of tokens whose bytes are put together; a character split over tokens waits for its last byte."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is certain now."""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """U+FFFD for a character that was never whole."""
        return self._decoder.decode(b"", final=True)


class WholeTextDecoder:
    """Text of a tokenizer that can only decode all tokens together."""

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._token_ids: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that is certain now: all but an end of U+FFFD, which the next token may mend."""
        self._token_ids.append(token)
        return self._since(self._decode(self._token_ids).rstrip("\ufffd"))

    def flush(self) -> str:
        """The end that was held back."""
        return self._since(self._decode(self._token_ids))

    def _since(self, text: str) -> str:
        new = text[self._given :]
        self._given = max(self._given, len(text))
        return new


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that `stop` starts with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def _measure(logits: NDArray[np.float32], token: int, top: int) -> ChosenToken:
    log_probabilities = log_softmax(logits)
    likeliest = np.argsort(-log_probabilities, kind="stable")[:top] if top else np.empty(0, np.int64)
    return ChosenToken(
        LogProbability(token, float(log_probabilities[token])),
        tuple(LogProbability(int(each), float(log_probabilities[each])) for each in likeliest),
    )
