"""The PyTorch engine: a merged folder that answers part by part, capped by forward hooks or not.

Slower than llama.cpp on a CPU, and the weights as they were merged: nothing is quantised.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from karma_electric.axis.model import LoadedModel, load_model
from karma_electric.capping.formula import Cap
from karma_electric.capping.pytorch import CapHooks, capped
from karma_electric.conversation import Message
from karma_electric.engines.answer import GrowingAnswer, WholeTextDecoder
from karma_electric.engines.chat_template import ChatTemplate
from karma_electric.engines.protocol import CapActivity, EngineIdentity, StreamedToken
from karma_electric.engines.sampling import Sampling
from karma_electric.errors import InputError, IntegrityError

DEFAULT_CONTEXT_TOKENS = 4096


class TransformersEngine:
    """The model in `folder`, whose manifest must hold; implements karma_electric.engines.protocol.ChatEngine.

    `cap` and `axis_sha256` (of the file that the cap is from) go together. `context_tokens` is the longest sequence,
    prompt and answer, and is at most what the model was made for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        cap: Cap | None = None,
        axis_sha256: str | None = None,
        context_tokens: int = DEFAULT_CONTEXT_TOKENS,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        if (cap is None) != (axis_sha256 is None):
            raise InputError("cap and axis_sha256 go together: an answer must name the axis file that caps")
        self._folder = folder
        self._loaded: LoadedModel | None = load_model(folder, dtype=dtype)
        self._cap = cap
        self._identity = EngineIdentity("transformers", transformers.__version__, self._loaded.sha256, axis_sha256)
        self.context_tokens = min(context_tokens, self._loaded.context_tokens or context_tokens)
        source = self._loaded.tokenizer.chat_template
        if not isinstance(source, str):
            raise InputError(f"{folder}: has no chat template; expected chat_template.jinja beside the tokenizer")
        self._template = ChatTemplate(
            source,
            bos_token=self._loaded.tokenizer.bos_token or "",
            eos_token=self._loaded.tokenizer.eos_token or "",
            where=str(folder),
        )
        if cap is not None:
            with capped(self._loaded.model, cap):  # refuses the axis of another model now rather than at the first turn
                pass

    @property
    def identity(self) -> EngineIdentity:
        """What answers."""
        return self._identity

    def prompt_token_ids(self, messages: Sequence[Message]) -> list[int]:
        """The conversation in the model's chat template, with the assistant's header, as token ids."""
        text = self._template.render(messages)
        return [int(token) for token in self._open().tokenizer(text, add_special_tokens=False)["input_ids"]]

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
            pass_ = _Passes(loaded, self._folder)
            logits, first = pass_.read(prompt), True
            while True:
                step = answer.take(logits)
                activity, layers = _activity(hooks)
                yield StreamedToken(step.text, step.token, answer.finish, activity, None if first else layers)
                if answer.finish is not None or step.token is None:
                    return
                logits, first = pass_.read([step.token]), False

    def close(self) -> None:
        """Let the model go."""
        self._loaded = None

    def _open(self) -> LoadedModel:
        if self._loaded is None:
            raise RuntimeError(f"the engine of {self._folder} is closed")
        return self._loaded

    def _new_answer(
        self, loaded: LoadedModel, prompt_tokens: int, max_tokens: int | None, sampling: Sampling
    ) -> GrowingAnswer:
        room = self.context_tokens - prompt_tokens
        wanted = max(1, room) if max_tokens is None else max_tokens
        if not 1 <= wanted <= room:
            raise InputError(
                f"a prompt of {prompt_tokens} and an answer of {wanted} tokens, expected at least 1 and together at "
                f"most {self.context_tokens} of context; shorten it"
            )
        tokenizer = loaded.tokenizer

        def decode(token_ids: Sequence[int]) -> str:
            return str(tokenizer.decode(token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        return GrowingAnswer(
            WholeTextDecoder(decode), loaded.end_ids.__contains__, sampling=sampling, max_tokens=wanted
        )

    @contextlib.contextmanager
    def _capped(self, loaded: LoadedModel, wanted: bool) -> Iterator[CapHooks | None]:
        if not wanted:
            yield None
            return
        if self._cap is None:
            raise InputError(f"{self._folder}: capped answers need a cap; give the engine an axis file")
        with capped(loaded.model, self._cap) as hooks:
            yield hooks


class _Passes:
    """Forward passes of one sequence, on a cache of their own."""

    def __init__(self, loaded: LoadedModel, folder: Path) -> None:
        self._loaded = loaded
        self._folder = folder
        self._cache: Any = None
        parameters = inspect.signature(loaded.model.forward).parameters
        self._options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}

    def read(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """The logits after the last of `token_ids`, (vocab_size,)."""
        # Not inference_mode: it would hold for whatever runs while a stream waits for its reader.
        with torch.no_grad():
            inputs = torch.tensor([list(token_ids)], device=self._loaded.device)  # (1, tokens)
            output = self._loaded.model(inputs, past_key_values=self._cache, use_cache=True, **self._options)
        self._cache = output.past_key_values
        logits: NDArray[np.float32] = output.logits[0, -1].float().cpu().numpy()
        if not np.isfinite(logits).all():
            raise IntegrityError(f"{self._folder}: a logit is not finite; the model or the cap is broken")
        return logits


def _activity(hooks: CapHooks | None) -> tuple[CapActivity, tuple[int, ...]]:
    """What the cap did since this was last asked, and in which layers it acted."""
    if hooks is None:
        return CapActivity(0, 0), ()
    activity = hooks.activity
    layers = tuple(layer for layer, each in hooks.activity_by_layer().items() if each.fired)
    hooks.reset_activity()
    return activity, layers
