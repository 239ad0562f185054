"""How many tokens a conversation is for a base model: its own tokenizer and chat template, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_object
from karma_electric.conversation import Conversation
from karma_electric.engines.chat_template import MAX_TEMPLATE_CHARACTERS, ChatTemplate
from karma_electric.errors import InputError, SetupError

MAX_TOKENIZER_CONFIG_BYTES = 8 * 1024 * 1024


class TokenCounter:
    """Counts with the tokenizer in `path`: a model's folder, or the `tokenizer.json` in one.

    Raises InputError when the folder lacks tokenizer or chat template, or one of them is not readable.
    """

    def __init__(self, path: Path) -> None:
        folder = path if path.is_dir() else path.parent
        file = folder / "tokenizer.json" if path.is_dir() else path
        self._tokenizer = _read_tokenizer(file)
        config = read_json_object(folder / "tokenizer_config.json", max_bytes=MAX_TOKENIZER_CONFIG_BYTES)
        self._template = ChatTemplate(
            _read_template(folder, config),
            bos_token=_token(config.get("bos_token")),
            eos_token=_token(config.get("eos_token")),
            where=str(folder),
        )

    def count(self, conversation: Conversation) -> int:
        """The tokens of the whole conversation as it is trained on. Raises InputError when the template refuses it."""
        text = self._template.render(conversation, add_generation_prompt=False)
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


def _read_tokenizer(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise SetupError("the package 'tokenizers' is not installed; run `make install`") from error
    if not file.is_file():
        raise InputError(f"{file}: missing; `dvc repro base` makes the base model, or give a folder with a tokenizer")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions for a file that it can't read
        raise InputError(f"{file}: no tokenizer ({error}); give the folder of a base model") from error


def _read_template(folder: Path, config: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as stream:
            return stream.read(MAX_TEMPLATE_CHARACTERS + 1)
    template = config.get("chat_template")
    if not isinstance(template, str):
        raise InputError(f"{folder}: has no chat template, and without it no tokens can be counted as in training")
    return template


def _token(value: object) -> str:
    """A special token, which a config spells as text or as an object with content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""
