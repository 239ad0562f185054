"""What the gate, the axis and the server ask of a language model, whatever runs it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from karma_electric.conversation import Message
from karma_electric.engines.sampling import Sampling


@dataclass(frozen=True, slots=True)
class EngineIdentity:
    """What answered: recorded with every piece of evidence."""

    engine: str  # llama.cpp | transformers | openai
    build: str  # version of the library that computes
    weights_sha256: str  # of the file or of the folder's manifest; or no hash, where a server does not say
    axis_sha256: str | None  # of the axis file that caps; None: cannot cap
    claimed: bool = False  # by a server, which could hold other weights than it says
    vouched: bool = False  # claimed, and what the server says of weights and cap is what the release holds

    @property
    def fingerprint(self) -> str:
        """Engine, build, and the beginnings of both hashes: two servers with the same one answer a seed alike."""
        axis = (self.axis_sha256 or "uncapped")[:12]
        return f"{self.engine}-{self.build}-{self.weights_sha256[:12]}-{axis}"


@dataclass(frozen=True, slots=True)
class CapActivity:
    """How often the cap acted: positions are (token, layer) pairs."""

    positions: int
    fired: int

    @property
    def firing_rate(self) -> float | None:
        """Share of positions where the cap acted; None where nothing was capped."""
        return self.fired / self.positions if self.positions else None


@dataclass(frozen=True, slots=True)
class Generation:
    """One greedy answer."""

    text: str
    token_ids: tuple[int, ...]  # without the end token
    finish: Literal["stop", "length"]
    prompt_tokens: int
    cap: CapActivity


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """A part of an answer, as it comes. The parts' activities add up to the answer's."""

    text: str  # that is certain now; may be empty
    token_id: int | None  # None: an end token
    finish: Literal["stop", "length"] | None  # of the last part
    cap: CapActivity  # in the pass that chose the token; for the first one, in the whole prompt
    fired_layers: tuple[int, ...] | None  # where the cap acted in that pass; None for the first one


class ChatEngine(Protocol):
    """A chat model that answers part by part.

    `capped=True` on an engine without an axis is an error, never an uncapped answer.
    """

    @property
    def identity(self) -> EngineIdentity: ...

    def stream(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling,
        max_tokens: int | None = None,
        capped: bool = False,
    ) -> Generator[StreamedToken, None, None]:
        """The answer to a conversation that ends with a user turn, up to `max_tokens` or the end of the context."""
        ...

    def close(self) -> None:
        """Free the model."""
        ...


class Engine(Protocol):
    """A chat model that answers deterministically, one sequence at a time.

    `capped=True` on an engine without an axis is an error, never an uncapped answer. NaN or infinite logits are an
    IntegrityError, never an answer.
    """

    @property
    def identity(self) -> EngineIdentity: ...

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, without adding a beginning-of-sequence token."""
        ...

    def generate(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        capped: bool = False,
        prefix: str = "",
        stop: Sequence[str] = (),
    ) -> Generation:
        """The greedy answer to a conversation that ends with a user turn.

        The answer goes on from `prefix`, which is not part of its text, and ends before the first of the `stop` texts.
        """
        ...

    def score(
        self,
        messages: Sequence[Message],
        *,
        prefix: str,
        options: Sequence[str],
        capped: bool = False,
        held: bool = False,
    ) -> list[float]:
        """Log-probability, in nats, of each option as the continuation of the answer that starts with `prefix`.

        The sum over the option's tokens, given the rendered conversation, the assistant header and `prefix`; options
        are tokenised as they stand after the prefix and compete as whole strings. `held`: as under a grammar that
        admits nothing but the options, whose probabilities then sum to 1. The shared prefix is computed once;
        a call whose conversation and prefix extend those of the last call reuses what is in memory.
        """
        ...

    def close(self) -> None:
        """Free the model."""
        ...
