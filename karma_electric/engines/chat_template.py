"""Chat templates: a conversation as the text that a model was trained on.

Rendered as Hugging Face does it (a sandboxed Jinja with trimmed blocks), without the clock: a template that asks for
today's date takes its own default.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from karma_electric.conversation import Message
from karma_electric.errors import InputError

MAX_TEMPLATE_CHARACTERS = 1024 * 1024


class ChatTemplate:
    """A compiled template. `where` (the model's file) starts every error."""

    def __init__(self, source: str, *, bos_token: str, eos_token: str, where: str) -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise InputError(f"{where}: the chat template has {len(source)} characters; this is no template")
        self._where = where
        self._special = {"bos_token": bos_token, "eos_token": eos_token}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            raise InputError(f"{where}: the chat template is not Jinja ({error}); write the file again") from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The text of `messages`, with the header of the assistant's turn at its end when that is asked for."""
        try:
            return self._template.render(
                messages=[message.as_dict() for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special,
            )
        except Exception as error:  # a template is a foreign program: whatever it raises is its refusal
            raise InputError(f"{self._where}: the chat template refuses the conversation ({error})") from error


def _raise(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
