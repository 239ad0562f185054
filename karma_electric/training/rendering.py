"""Conversations as token ids, and the mask of the tokens that the loss is taken on.

The text is what the model's own chat template renders, unchanged, so training and inference see the same. Where an
answer begins and ends is found by rendering the turns before it with the assistant's header: that text must be a
prefix of the whole, in characters and in tokens, and the answer with its end-of-turn token must follow it. A template
that does not work turn by turn is refused. No template is edited, so any that keeps the prefix will do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from karma_electric.conversation import Example
from karma_electric.errors import InputError

IGNORED_LABEL = -100  # torch's cross entropy leaves such positions out
_PROBE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@dataclass(frozen=True, slots=True)
class RenderedExample:
    """The token ids of a conversation; `assistant_mask`, of the same length, is true where the loss is taken."""

    id: str
    input_ids: tuple[int, ...]
    assistant_mask: tuple[bool, ...]
    is_cut: bool

    @property
    def labels(self) -> list[int]:
        """The token id where the loss is taken, IGNORED_LABEL elsewhere."""
        return [
            token if learned else IGNORED_LABEL
            for token, learned in zip(self.input_ids, self.assistant_mask, strict=True)
        ]


class ChatRenderer:
    """Renders conversations with a tokenizer's chat template.

    `tokenizer` is a transformers tokenizer. Raises InputError when it has no chat template, or one that writes the
    date. A beginning-of-sequence token comes once: from the template, or else from the tokenizer if it adds one.
    """

    def __init__(self, tokenizer: Any, *, max_length: int) -> None:
        if not isinstance(tokenizer.chat_template, str):
            raise InputError("the base's tokenizer has no chat template; choose an instruction-tuned base")
        if "strftime_now" in tokenizer.chat_template:
            raise InputError("the base's chat template writes today's date, so two builds would differ; fix the date")
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._bos: int | None = tokenizer.bos_token_id
        plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        around: list[int] = tokenizer("a")["input_ids"]
        self._adds_bos = self._bos is not None and around[:1] == [self._bos] and plain[:1] != [self._bos]
        self._control_tokens = self._find_control_tokens()
        probe = self._encode(self._apply(_PROBE, "the probe"))
        self._bos_opens_turns = self._bos is not None and probe.count(self._bos) > 1

    def render(self, example: Example, where: str) -> RenderedExample:
        """Token ids and mask of one conversation, cut at `max_length`; `where`, file and id, starts an InputError."""
        messages = [message.as_dict() for message in example.conversation]
        for number, message in enumerate(messages, start=1):
            for token in self._control_tokens:
                if token in message["content"]:
                    raise InputError(
                        f"{where}: message {number} contains the control token {token}; spell it otherwise"
                    )
        text = self._apply(messages, where)
        ids = self._encode(text)
        self._check_bos(ids, where)
        mask = [False] * len(ids)
        for index, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = self._answer_span(messages, index, text, where)
                first, last = (self._count_prefix(text[:cut], ids, where) for cut in (start, end))
                mask[first:last] = [True] * (last - first)
        if not any(mask[: self._max_length]):
            raise InputError(
                f"{where}: no token of an answer is among the first {self._max_length} of {len(ids)} tokens; "
                "raise train.max_length or shorten the prompt"
            )
        kept = slice(self._max_length)
        return RenderedExample(example.id, tuple(ids[kept]), tuple(mask[kept]), is_cut=len(ids) > self._max_length)

    def _apply(self, messages: Sequence[dict[str, str]], where: str, *, header: bool = False) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header)
        except jinja2.TemplateError as error:
            raise InputError(
                f"{where}: the chat template refuses it ({error}); change the roles or the order"
            ) from error
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self._bos, *ids] if self._adds_bos and self._bos is not None and ids[:1] != [self._bos] else ids

    def _find_control_tokens(self) -> list[str]:
        """The special tokens that the template writes, the longest first: where turns begin and end."""
        text = self._apply(_PROBE, "the probe")
        added = {str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special}
        found = {token for token in added if token in text} | {
            token for token in (self._tokenizer.bos_token, self._tokenizer.eos_token) if token
        }
        return sorted(found, key=lambda token: (-len(token), token))

    def _check_bos(self, ids: list[int], where: str) -> None:
        if self._bos is None:
            return
        doubled = self._bos in ids[1:] if not self._bos_opens_turns else ids[:2] == [self._bos] * 2
        if doubled:
            raise InputError(f"{where}: the template writes the beginning-of-sequence token twice; mend the template")

    def _answer_span(self, messages: Sequence[dict[str, str]], index: int, text: str, where: str) -> tuple[int, int]:
        """First and end position in `text` of an answer's content and its end-of-turn token."""
        prefix = self._apply(messages[:index], where, header=True)
        content = messages[index]["content"]
        if text.startswith(prefix):
            for spelled in dict.fromkeys((content, content.rstrip(), content.lstrip(), content.strip())):
                end = len(prefix) + len(spelled)
                if text.startswith(spelled, len(prefix)):
                    for token in self._control_tokens:
                        if text.startswith(token, end):
                            return len(prefix), end + len(token)
        raise InputError(
            f"{where}: message {index + 1}: the chat template does not render the answer, and an end-of-turn token, "
            "right after the assistant's header; its tokens cannot be told from the prompt's; use another template"
        )

    def _count_prefix(self, prefix: str, ids: list[int], where: str) -> int:
        """How many tokens `prefix` is; it must be whole tokens of `ids`, as it is when the model goes on from there."""
        part = self._encode(prefix)
        if ids[: len(part)] != part:
            raise InputError(
                f"{where}: the tokens before an answer are others when the answer follows, so it would be learned in a "
                "place where it never stands; remove white space from its start"
            )
        return len(part)


def render_examples(
    examples: Sequence[Example], tokenizer: Any, *, max_length: int, where: str
) -> list[RenderedExample]:
    """Every example rendered, in order; `where` names their file in errors."""
    renderer = ChatRenderer(tokenizer, max_length=max_length)
    return [renderer.render(example, f"{where}: row {example.id!r}") for example in examples]
