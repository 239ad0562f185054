"""The PyTorch engine: a merged folder or a GGUF file that answers and weighs answers, capped by forward hooks or not.

On a CPU it is slower than llama.cpp. Each answer is computed from its whole prompt, so that it depends on the question
alone and not on what was asked before.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from karma_electric.axis.model import copy_of_module, other_gpus
from karma_electric.capping.formula import Cap
from karma_electric.capping.pytorch import CapHooks, capped
from karma_electric.conversation import Message
from karma_electric.engines.answer import GrowingAnswer
from karma_electric.engines.interviews import OneAtATime
from karma_electric.engines.llama_cpp_sequence import common_length
from karma_electric.engines.option_tree import OptionTree, TokenPath
from karma_electric.engines.protocol import CapActivity, EngineIdentity, Generation, StreamedToken
from karma_electric.engines.questions import ParallelAnswers
from karma_electric.engines.sampling import Sampling
from karma_electric.engines.side_by_side import side_by_side
from karma_electric.engines.torch_model import TorchChatModel, load_torch_model
from karma_electric.errors import InputError, IntegrityError

DEFAULT_CONTEXT_TOKENS = 4096


class TransformersEngine:
    """The model in `path`, a folder whose manifest must hold or a GGUF file; implements Engine and ChatEngine of
    karma_electric.engines.protocol.

    `cap` and `axis_sha256` (of the file that the cap is from) go together. `context_tokens` is the longest sequence,
    prompt and answer, and is at most what the model was made for. `dtype` is by default bfloat16 for a folder and
    float32 for a GGUF file.
    """

    def __init__(
        self,
        path: Path,
        *,
        cap: Cap | None = None,
        axis_sha256: str | None = None,
        context_tokens: int = DEFAULT_CONTEXT_TOKENS,
        dtype: torch.dtype | None = None,
    ) -> None:
        if (cap is None) != (axis_sha256 is None):
            raise InputError("cap and axis_sha256 go together: an answer must name the axis file that caps")
        self._path = path
        self._loaded: TorchChatModel | None = load_torch_model(path, dtype=dtype)
        self._cap = cap
        self._identity = EngineIdentity("transformers", transformers.__version__, self._loaded.sha256, axis_sha256)
        self.context_tokens = min(context_tokens, self._loaded.context_tokens or context_tokens)
        if cap is not None:
            with capped(self._loaded.model, cap):  # refuses the axis of another model now rather than at the first turn
                pass

    @property
    def identity(self) -> EngineIdentity:
        """What answers."""
        return self._identity

    @property
    def arithmetic(self) -> str:
        """What PyTorch computes with here: another device, type or number of threads gives other bits."""
        model = self._open().model
        if self._open().device.type == "cuda":
            where = f"{torch.cuda.get_device_name(model.device)}, CUDA {torch.version.cuda}"
        else:
            where = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
        return f"torch {torch.__version__}, {model.dtype}, {where}"

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of `text`, without bos. With `parse_special`, names of control tokens become those tokens."""
        return self._open().tokenize(text, parse_special)

    def prompt_token_ids(self, messages: Sequence[Message], *, prefix: str = "") -> list[int]:
        """The conversation in the model's chat template, the assistant's header, and `prefix`, as token ids."""
        return self._open().prompt_tokens(self._render(messages) + prefix)

    def generate(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        capped: bool = False,
        prefix: str = "",
        stop: Sequence[str] = (),
    ) -> Generation:
        """The greedy answer, going on from `prefix`. The cap's activity counts every token that the model read."""
        if not all(stop):
            raise InputError(f"stop is {list(stop)!r}, expected no empty text")
        loaded = self._open()
        prompt = self.prompt_token_ids(messages, prefix=prefix)
        answer = self._new_answer(loaded, len(prompt), max_tokens, Sampling(), stop)
        with self._capped(loaded, capped) as hooks:
            passes, text = _Passes(loaded), ""
            logits = passes.read(prompt)
            while True:
                step = answer.take(logits)
                text += step.text
                if answer.finish is not None or step.token is None:
                    break
                logits = passes.read([step.token])
            activity = CapActivity(0, 0) if hooks is None else hooks.activity
        return Generation(text, tuple(answer.token_ids), answer.finish or "stop", len(prompt), activity)

    @contextlib.contextmanager
    def answer_in_parallel(self, *, capped: bool) -> Iterator[ParallelAnswers]:
        """A slot for each GPU, with a copy of the model there; on a CPU, or with one GPU, one slot."""
        engines = [self, *map(self._copy_on, other_gpus(self._open().device))]
        with side_by_side([OneAtATime(engine) for engine in engines]) as answers:
            yield answers

    def score(
        self,
        messages: Sequence[Message],
        *,
        prefix: str,
        options: Sequence[str],
        capped: bool = False,
        held: bool = False,
    ) -> list[float]:
        """Log-probability, in nats, of each option as the continuation of the answer that starts with `prefix`: the sum
        over the tokens after those that all options and the bare prefix share."""
        if not options or not all(options):
            raise InputError(f"options are {list(options)!r}, expected at least one, none of them empty")
        loaded = self._open()
        start = self._render(messages) + prefix
        bare = loaded.prompt_tokens(start)
        sequences = [loaded.prompt_tokens(start + option) for option in options]
        shared = common_length([bare, *sequences])
        if not 0 < shared < min(map(len, sequences)):
            raise InputError("an option shares no token with the prompt, or adds none; expected a prompt, then options")
        self._check_length(max(map(len, sequences)), f"a prompt of {len(bare)} with its options")
        tree = OptionTree([tuple(sequence[shared:]) for sequence in sequences], held=held)
        with self._capped(loaded, capped):
            passes = _Passes(loaded)
            logits: dict[TokenPath, NDArray[np.float32]] = {(): passes.read(bare[:shared])}
            for path, rows in zip(tree.leaves, passes.branch(tree.leaves), strict=True):
                logits |= {path[: index + 1]: row for index, row in enumerate(rows)}
        return tree.log_probabilities(logits)

    def stream(
        self,
        messages: Sequence[Message],
        *,
        sampling: Sampling,
        max_tokens: int | None = None,
        capped: bool = False,
    ) -> Generator[StreamedToken, None, None]:
        """The answer part by part, up to `max_tokens` or the end of the context."""
        loaded = self._open()
        prompt = self.prompt_token_ids(messages)
        answer = self._new_answer(loaded, len(prompt), max_tokens, sampling)
        with self._capped(loaded, capped) as hooks:
            passes = _Passes(loaded)
            logits, first = passes.read(prompt), True
            while True:
                step = answer.take(logits)
                activity, layers = _activity(hooks)
                yield StreamedToken(step.text, step.token, answer.finish, activity, None if first else layers)
                if answer.finish is not None or step.token is None:
                    return
                logits, first = passes.read([step.token]), False

    def close(self) -> None:
        """Let the model go."""
        self._loaded = None

    def _open(self) -> TorchChatModel:
        if self._loaded is None:
            raise RuntimeError(f"the engine of {self._path} is closed")
        return self._loaded

    def _copy_on(self, device: torch.device) -> TransformersEngine:
        loaded, other = self._open(), copy.copy(self)
        other._loaded = replace(loaded, model=copy_of_module(loaded.model, device))
        return other

    def _render(self, messages: Sequence[Message]) -> str:
        if not messages or messages[-1].role != "user":
            last = messages[-1].role if messages else "missing"
            raise InputError(f"the last turn is {last}, expected the user's: the answer follows it")
        return self._open().template.render(messages)

    def _new_answer(
        self,
        loaded: TorchChatModel,
        prompt_tokens: int,
        max_tokens: int | None,
        sampling: Sampling,
        stop: Sequence[str] = (),
    ) -> GrowingAnswer:
        wanted = max(1, self.context_tokens - prompt_tokens) if max_tokens is None else max_tokens
        if wanted < 1:
            raise InputError(f"max_tokens is {max_tokens}, expected at least 1")
        self._check_length(prompt_tokens + wanted, f"a prompt of {prompt_tokens} and an answer of {wanted}")
        return GrowingAnswer(
            loaded.new_decoder(), loaded.ends_generation, sampling=sampling, max_tokens=wanted, stop=stop
        )

    def _check_length(self, tokens: int, what: str) -> None:
        if tokens > self.context_tokens:
            raise InputError(
                f"{what} tokens make {tokens}, expected at most {self.context_tokens} of context; shorten it"
            )

    @contextlib.contextmanager
    def _capped(self, loaded: TorchChatModel, wanted: bool) -> Iterator[CapHooks | None]:
        if not wanted:
            yield None
            return
        if self._cap is None:
            raise InputError(f"{self._path}: capped answers need a cap; give the engine an axis file")
        with capped(loaded.model, self._cap) as hooks:
            yield hooks


class _Passes:
    """Forward passes of one sequence, on a cache of their own."""

    def __init__(self, loaded: TorchChatModel) -> None:
        self._loaded = loaded
        self._cache: Any = None
        parameters = inspect.signature(loaded.model.forward).parameters
        self._last_only: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def read(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after the last of `token_ids`, (vocab_size,)."""
        self._cache, logits = self._run([list(token_ids)], self._cache, self._last_only)
        last: NDArray[np.float32] = logits[0, -1]
        return last

    def branch(self, paths: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """For each path of tokens after what was read, the logits after each of its tokens, (len(path), vocab_size).

        All paths are one batch, filled up on the right, which causal attention cannot see.
        """
        if not paths:
            return []
        width = max(map(len, paths))
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(len(paths))
        _, logits = self._run([[*path, *[0] * (width - len(path))] for path in paths], cache, {})
        return [rows[: len(path)] for rows, path in zip(logits, paths, strict=True)]

    def _run(self, token_ids: list[list[int]], cache: Any, options: dict[str, Any]) -> tuple[Any, NDArray[np.float32]]:
        """The cache after a batch (rows, tokens), and the logits, (rows, tokens or 1, vocab_size)."""
        # Not inference_mode: it would hold for whatever runs while a stream waits for its reader.
        with torch.no_grad():
            inputs = torch.tensor(token_ids, device=self._loaded.device)  # (rows, tokens)
            output = self._loaded.model(inputs, past_key_values=cache, use_cache=True, **options)
        logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise IntegrityError(f"{self._loaded.path}: a logit is not finite; the model or the cap is broken")
        return output.past_key_values, logits


def _activity(hooks: CapHooks | None) -> tuple[CapActivity, tuple[int, ...]]:
    """What the cap did since this was last asked, and in which layers it acted."""
    if hooks is None:
        return CapActivity(0, 0), ()
    activity = hooks.activity
    layers = tuple(layer for layer, each in hooks.activity_by_layer().items() if each.fired)
    hooks.reset_activity()
    return activity, layers
