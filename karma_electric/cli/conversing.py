"""The turns of `karma chat`: read one, answer it, show it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import secrets
import sys
import unicodedata
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from karma_electric.cli.output import say
from karma_electric.conversation import Message
from karma_electric.engines.protocol import CapActivity, ChatEngine, StreamedToken
from karma_electric.engines.sampling import Sampling
from karma_electric.errors import InputError, IntegrityError

PROMPT = "> "
NEW = "/new"


@dataclass
class Answer:
    """An answer with what the cap did in it."""

    parts: list[StreamedToken] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)

    @property
    def cap(self) -> CapActivity:
        activities = [part.cap for part in self.parts]
        return CapActivity(sum(a.positions for a in activities), sum(a.fired for a in activities))

    def fired_by_layer(self) -> dict[int, int]:
        """In how many passes after the prompt the cap acted, by layer."""
        layers = [layer for part in self.parts for layer in part.fired_layers or ()]
        return {layer: layers.count(layer) for layer in sorted(set(layers))}


@dataclass
class Conversing:
    """A conversation with an engine, from stdin to stdout; words about it go to stderr."""

    system_prompt: str | None
    sampling: Sampling
    max_tokens: int
    capped: bool
    compare: bool
    _history: list[Message] = field(default_factory=list)

    def run(self, engine: ChatEngine) -> None:
        """Answer turns until the input ends. In `compare` the conversation goes on with the capped answers."""
        at_terminal = sys.stdin.isatty()
        self._begin_anew()
        for turn in _turns_of_terminal() if at_terminal else _turns_of_pipe():
            if at_terminal and turn == NEW:
                self._begin_anew()
                say("a new conversation")
                continue
            length = len(self._history)
            self._history.append(Message("user", turn))
            try:
                answer = self._compare(engine) if self.compare else self._answer(engine)
            except (InputError, KeyboardInterrupt) as error:
                if not at_terminal:
                    raise
                del self._history[length:]
                say(f"\nerror: {error}; {NEW} starts again" if isinstance(error, InputError) else "\n(not answered)")
                continue
            self._history.append(Message("assistant", answer.text))

    def _begin_anew(self) -> None:
        self._history = [] if self.system_prompt is None else [Message("system", self.system_prompt)]

    def _stream(self, engine: ChatEngine, sampling: Sampling, *, capped: bool) -> Generator[StreamedToken, None, None]:
        return engine.stream(self._history, sampling=sampling, max_tokens=self.max_tokens, capped=capped)

    def _answer(self, engine: ChatEngine) -> Answer:
        answer = Answer()
        with contextlib.closing(self._stream(engine, self.sampling, capped=self.capped)) as parts:
            for part in parts:
                answer.parts.append(part)
                print(printable(part.text), end="", flush=True)
        print(flush=True)
        if self.capped:
            say(_summary(answer))
        return answer

    def _compare(self, engine: ChatEngine) -> Answer:
        """Both answers; with chance in play, from the same seed."""
        seed = secrets.randbits(63) if self.sampling.seed is None else self.sampling.seed
        sampling = dataclasses.replace(self.sampling, seed=seed)
        capped, uncapped = (
            Answer(list(self._stream(engine, sampling, capped=True))),
            Answer(list(self._stream(engine, sampling, capped=False))),
        )
        console = Console(highlight=False, markup=False)
        if console.is_terminal:
            table = Table("capped", "uncapped", expand=True, show_lines=True)
            table.add_row(_marked(capped, style="reverse"), Text(printable(uncapped.text)))
            console.print(table)
        else:
            for name, text in (("capped", capped.text), ("uncapped", uncapped.text)):
                print(f"{name}: {printable(text)}")
            print(f"where the cap acted: {_marked(capped, style=None).plain}", flush=True)
        say(_summary(capped))
        return capped


def printable(text: str) -> str:
    """`text` without the control characters that could steer a terminal."""
    return "".join(
        "\ufffd" if unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t" else sign for sign in text
    )


def _marked(answer: Answer, *, style: str | None) -> Text:
    """The answer with what was chosen under an acting cap in `style`, or in brackets."""
    marked = Text()
    for acted, parts in itertools.groupby(
        (p for p in answer.parts if p.text), key=lambda part: bool(part.fired_layers)
    ):
        text = printable("".join(part.text for part in parts))
        marked.append(f"[{text}]" if acted and style is None else text, style if acted else None)
    return marked


def _summary(answer: Answer) -> str:
    cap = answer.cap
    if cap.positions == 0:
        raise IntegrityError("the answer was to be capped, and the cap saw nothing of it; it is not capped")
    layers = ", ".join(f"{layer}: {count}" for layer, count in answer.fired_by_layer().items()) or "none"
    rate = cap.fired / cap.positions
    return (
        f"(the cap acted on {cap.fired} of {cap.positions} positions, {rate:.1%}, prompt included; "
        f"tokens of the answer by layer: {layers})"
    )


def _turns_of_terminal() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() then edits lines and remembers them
    while True:
        try:
            turn = input(PROMPT).strip()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            return
        if turn:
            yield turn


def _turns_of_pipe() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if turn := line.strip():
                yield turn
    except UnicodeDecodeError as error:
        raise InputError(f"standard input: not UTF-8 ({error.reason}); send text") from error
