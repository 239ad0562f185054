"""The llama.cpp engine: a GGUF file that answers greedily and scores answers, capped or not, on the CPU.

Answers depend on the file, the cap and the conversation, not on what was asked before (see llama_cpp_sequence.py).
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap
from karma_electric.capping.llama_cpp import FORCING_TAU, CapCallback, check_fit
from karma_electric.conversation import Message
from karma_electric.engines.answer import GrowingAnswer, Utf8Decoder
from karma_electric.engines.chat_template import ChatTemplate
from karma_electric.engines.llama_cpp_binding import build_name
from karma_electric.engines.llama_cpp_context import LlamaCppContext
from karma_electric.engines.llama_cpp_decoder import BATCH_TOKENS, CacheType, LlamaCppDecoder
from karma_electric.engines.llama_cpp_model import LlamaCppModel
from karma_electric.engines.llama_cpp_parallel import SLOTS, LlamaCppParallelAnswers, Steps, answer_alone
from karma_electric.engines.llama_cpp_sequence import TokenSequence
from karma_electric.engines.option_scores import score_options, scores_by_steps
from karma_electric.engines.protocol import EngineIdentity, Generation, StreamedToken
from karma_electric.engines.questions import Answer, ParallelAnswers, Question, Weigh, Write
from karma_electric.engines.sampling import Sampling
from karma_electric.engines.side_by_side import side_by_side
from karma_electric.errors import InputError, IntegrityError


class LlamaCppEngine:
    """A GGUF model; implements Engine and ChatEngine of karma_electric.engines.protocol. A context manager.

    `cap` and `axis_sha256` (of the file that the cap is from) go together. `context_tokens` is the longest sequence,
    prompt and answer, and is at most what the model was trained on. `threads` is by default the number of cores that
    this process may use; it changes the time, not the answers. `cache_type` f32 is for comparisons with PyTorch.

    Raises InputError for a missing file or a cap of another model, IntegrityError for a broken file, SetupError where
    the installed xllamacpp is not the pinned one.
    """

    def __init__(
        self,
        model_path: Path,
        *,
        cap: Cap | None = None,
        axis_sha256: str | None = None,
        context_tokens: int = 4096,
        threads: int | None = None,
        cache_type: CacheType = "f16",
    ) -> None:
        if (cap is None) != (axis_sha256 is None):
            raise InputError("cap and axis_sha256 go together: evidence must name the axis file that caps")
        if context_tokens < 1 or (threads is not None and threads < 1) or cache_type not in ("f16", "f32"):
            raise InputError(
                f"context_tokens is {context_tokens}, threads {threads}, cache_type {cache_type!r}; "
                "expected at least 1, at least 1 or None, f16 or f32"
            )
        self._model = LlamaCppModel(model_path)
        self._free: list[Callable[[], None]] = [self._model.free]
        self._finalizer = weakref.finalize(self, _free_all, self._free)
        if cap is not None:
            check_fit(cap, hidden_size=self._model.hidden_size, blocks=self._model.blocks)
        self._cap = cap
        self._axis_sha256 = axis_sha256
        self.context_tokens = min(context_tokens, self._model.trained_context_tokens)
        self._threads = threads or _available_cores()
        self._cache_type: CacheType = cache_type
        self._contexts: dict[bool, LlamaCppContext] = {}  # capped -> context, made when first needed
        self._template: ChatTemplate | None = None
        self._lock = threading.Lock()

    @property
    def identity(self) -> EngineIdentity:
        """What answers."""
        return EngineIdentity("llama.cpp", build_name(), self._model.sha256, self._axis_sha256)

    @property
    def arithmetic(self) -> str:
        """The instruction sets that llama.cpp computes with on this machine: others give other bits."""
        described: bytes = self._open_model().library.llama_print_system_info()
        return described.decode("utf-8", "replace").partition("|")[2].strip()

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return self._model.vocab_size

    def special_token_ids(self) -> dict[str, int]:
        """Ids by name: bos, eos, eot, pad, as far as the file names them."""
        return self._open_model().special_token_ids()

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, without bos. With `parse_special`, names of special tokens become those tokens."""
        return self._open_model().tokenize(text, parse_special=parse_special)

    def detokenize(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """The text of all tokens together; control tokens are left out unless `special`. Broken UTF-8 is U+FFFD."""
        return self._open_model().detokenize(token_ids, special=special)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token's text, maybe a part of a character; none of a control token."""
        return self._open_model().token_bytes(token_id)

    def prompt_token_ids(self, messages: Sequence[Message], *, prefix: str = "") -> list[int]:
        """The conversation in the model's chat template, the assistant's header, and `prefix`, as token ids.

        Exactly one bos: the template's, or the model's own where the template has none and the model wants one.
        """
        return self._encode(self._render(messages) + prefix)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        capped: bool = False,
        prefix: str = "",
        stop: Sequence[str] = (),
    ) -> Generation:
        """The greedy answer: the likeliest token each time, the lowest id among equals, to an end token, a stop text or
        max_tokens. It goes on from `prefix`, which is not part of its text.

        The cap's activity counts every token that the model read: the prompt, and the answer but for a last token that
        nothing follows. Raises InputError when prompt and `max_tokens` do not fit into the context.
        """
        if not all(stop):
            raise InputError(f"stop is {list(stop)!r}, expected no empty text")
        question = Write(tuple(messages), max_tokens, capped=capped, prefix=prefix, stop=tuple(stop))
        with self._lock:
            context = self._context(capped)
            return answer_alone(context, self._write(context, question))

    def stream(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling,
        max_tokens: int | None = None,
        capped: bool = False,
    ) -> Generator[StreamedToken, None, None]:
        """The answer part by part, up to `max_tokens` or the end of the context. One stream or question at a time."""
        with self._lock:
            context = self._context(capped)
            prompt = self.prompt_token_ids(messages)
            answer = self.new_answer(len(prompt), max_tokens=max_tokens, sampling=sampling)
            logits = context.read(prompt)
            activity, layers = context.activity, None
            while True:
                step = answer.take(logits)
                yield StreamedToken(step.text, step.token, answer.finish, activity, layers)
                if answer.finish is not None or step.token is None:
                    return
                logits = context.extend([step.token])[-1]
                activity, layers = context.last_activity, _fired_layers(context.callback)

    def new_answer(
        self,
        prompt_tokens: int,
        *,
        sampling: Sampling,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        top_log_probabilities: int | None = None,
    ) -> GrowingAnswer:
        """An answer to be grown from logits, after a prompt of so many tokens. Raises InputError where none fits."""
        room = max(1, self.context_tokens - prompt_tokens) if max_tokens is None else max_tokens
        if room < 1:
            raise InputError(f"max_tokens is {max_tokens}, expected at least 1")
        self._check_length(prompt_tokens + room, f"a prompt of {prompt_tokens} and an answer of {room}")
        return GrowingAnswer(
            Utf8Decoder(self._open_model().token_bytes),
            self._model.ends_generation,
            sampling=sampling,
            max_tokens=room,
            stop=stop,
            top_log_probabilities=top_log_probabilities,
        )

    def open_slots(self, count: int, *, capped: bool) -> list[TokenSequence]:
        """So many sequences of `context_tokens` each, in one context of their own; they live as long as the engine.

        For one thread, and with no lock: whoever holds them decodes for one of them at a time. An answer in one of
        them is the same bits as alone. When a decode fails, all of them lose their memory.
        """
        return self._open_sequences(count, capped=capped)[1]

    @contextlib.contextmanager
    def answer_in_parallel(self, *, capped: bool) -> Iterator[ParallelAnswers]:
        """Room for several questions at once, for one thread and with no lock, of `context_tokens` each.

        With two threads or more they are in two contexts, each of which has half of the threads: while one waits for
        its slowest thread, or for Python, the other computes.
        """

        def begin(sequence: TokenSequence, question: Question) -> Steps[Answer]:
            if question.capped != capped:
                raise InputError(f"a question with capped {question.capped} among those with capped {capped}")
            if isinstance(question, Write):
                return self._write(sequence, question)
            return scores_by_steps(sequence, *self._option_ids(question), held=question.held)

        with contextlib.ExitStack() as stack:
            parts = []
            for threads in filter(None, (self._threads - self._threads // 2, self._threads // 2)):
                opening = partial(self._open_sequences, SLOTS, capped=capped, threads=threads)
                parts.append(stack.enter_context(contextlib.closing(LlamaCppParallelAnswers(opening, begin))))
            yield stack.enter_context(side_by_side(parts))

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

        Conversation, prefix and option are tokenised as one text. What all options and the bare prefix have in common
        is given; the sum runs over the tokens after it. So where an option merges with the end of the prefix into one
        token, that end is scored for every option, and all compete for the same text.
        """
        question = Weigh(tuple(messages), tuple(options), capped=capped, prefix=prefix, held=held)
        with self._lock:
            context = self._context(capped)
            return score_options(context, *self._option_ids(question), held=held)

    def all_logits(self, token_ids: Sequence[int], *, capped: bool = False) -> NDArray[np.float32]:
        """The logits after every token, (tokens, vocab_size)."""
        if len(token_ids) == 0:
            raise InputError("token_ids is empty, expected at least one token")
        for token in token_ids:
            self._model.check_token(token)
        with self._lock:
            context = self._context(capped)
            self._check_length(len(token_ids), f"{len(token_ids)}")
            return context.read_all(list(token_ids))

    def close(self) -> None:
        """Free the model. A second call does nothing."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_model(self) -> LlamaCppModel:
        if not self._finalizer.alive:
            raise RuntimeError(f"the engine of {self._model.path} is closed")
        return self._model

    def _write(self, sequence: TokenSequence, question: Write) -> Steps[Generation]:
        """Read the prompt; yield each token that needs to be decoded, to be sent the logits after it."""
        prompt = self.prompt_token_ids(question.messages, prefix=question.prefix)
        answer = self.new_answer(len(prompt), max_tokens=question.max_tokens, sampling=Sampling(), stop=question.stop)
        logits, text = sequence.read(prompt), ""
        while True:
            step = answer.take(logits)
            text += step.text
            if answer.finish is not None or step.token is None:
                break
            logits = yield step.token
        return Generation(
            text=text,
            token_ids=tuple(answer.token_ids),
            finish=answer.finish or "stop",
            prompt_tokens=len(prompt),
            cap=sequence.activity,
        )

    def _option_ids(self, question: Weigh) -> tuple[list[int], list[list[int]]]:
        """The prompt as token ids, and with each of the options behind it."""
        if not question.options or not all(question.options):
            raise InputError(f"options are {list(question.options)!r}, expected at least one, none of them empty")
        start = self._render(question.messages) + question.prefix
        bare = self._encode(start)
        sequences = [self._encode(start + option) for option in question.options]
        longest = max(len(sequence) for sequence in sequences)
        self._check_length(longest, f"a prompt of {len(bare)} with options up to {longest - len(bare)}")
        return bare, sequences

    def _open_sequences(
        self, count: int, *, capped: bool, threads: int | None = None
    ) -> tuple[LlamaCppDecoder, list[TokenSequence]]:
        """Sequences with a stream of memory each, in one context, whose cap is proven to act."""
        model = self._open_model()
        callback = self._new_callback(model) if capped else None
        decoder = LlamaCppDecoder(
            model,
            context_tokens=self.context_tokens,
            threads=threads or self._threads,
            cache_type=self._cache_type,
            cap=callback,
            sequences=count,
        )
        self._free.append(decoder.free)
        sequences = [TokenSequence(decoder, number) for number in range(count)]
        if callback is not None:
            for sequence in sequences:
                _prove_effect(sequence, callback, layers=len(callback.layers))
        return decoder, sequences

    def _context(self, capped: bool) -> LlamaCppContext:
        model = self._open_model()
        if capped not in self._contexts:
            self._contexts[capped] = self._capped_context(model) if capped else self._new_context(model, None)
        return self._contexts[capped]

    def _new_context(self, model: LlamaCppModel, callback: CapCallback | None) -> LlamaCppContext:
        context = LlamaCppContext(
            model,
            context_tokens=self.context_tokens,
            threads=self._threads,
            cache_type=self._cache_type,
            cap=callback,
        )
        self._free.append(context.free)
        return context

    def _capped_context(self, model: LlamaCppModel) -> LlamaCppContext:
        callback = self._new_callback(model)
        context = self._new_context(model, callback)
        _prove_effect(context, callback, layers=len(callback.layers))
        return context

    def _new_callback(self, model: LlamaCppModel) -> CapCallback:
        if self._cap is None:
            raise InputError(f"{model.path}: capped answers need a cap; give the engine an axis file")
        return CapCallback(
            model.library, self._cap, hidden_size=model.hidden_size, blocks=model.blocks, max_rows=BATCH_TOKENS
        )

    def _render(self, messages: Sequence[Message]) -> str:
        if not messages or messages[-1].role != "user":
            last = messages[-1].role if messages else "missing"
            raise InputError(f"the last turn is {last}, expected the user's: the answer follows it")
        return self._chat_template().render(messages)

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            self._template = self._open_model().compiled_template()
        return self._template

    def _encode(self, text: str) -> list[int]:
        return self._open_model().prompt_tokens(text)

    def _check_length(self, tokens: int, what: str) -> None:
        if tokens > self.context_tokens:
            raise InputError(
                f"{what} tokens make {tokens}, expected at most {self.context_tokens} of context; shorten it, or raise "
                f"context_tokens (this model: up to {self._model.trained_context_tokens})"
            )


def _available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fired_layers(callback: CapCallback | None) -> tuple[int, ...]:
    """Where the cap acted in the last decode."""
    return () if callback is None else tuple(layer for layer, fired in callback.fired_by_layer.items() if fired)


def _prove_effect(context: TokenSequence, callback: CapCallback, *, layers: int) -> None:
    """Force the cap on one token and see that the logits change: a cap that is not wired in is no cap."""
    try:
        callback.set_all_taus(-FORCING_TAU)
        at_rest, rest = context.read([0]), context.activity
        callback.set_all_taus(FORCING_TAU)
        forced, force = context.read([0]), context.activity
    finally:
        callback.restore_taus()
        context.forget()
    if rest.fired != 0 or force.fired != layers or np.array_equal(at_rest, forced):
        raise IntegrityError(
            f"a forced cap fired {force.fired} times of {layers} (at rest {rest.fired}) and the logits "
            f"{'are unchanged' if np.array_equal(at_rest, forced) else 'changed'}; the cap does not reach the model"
        )


def _free_all(functions: list[Callable[[], None]]) -> None:
    """Free in the reverse order of making: contexts, then the model."""
    while functions:
        functions.pop()()
