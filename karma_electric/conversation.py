"""What the model learns from: messages, conversations, and the rows that carry them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from karma_electric.canonical import canonical_json, read_json_lines
from karma_electric.errors import InputError, shown

Role = Literal["system", "user", "assistant"]
ROLES: tuple[str, ...] = get_args(Role)

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One training row: an id that is unique in its set, where it is from, its category, and the conversation."""

    id: str
    source: str
    category: str
    conversation: Conversation

    def as_row(self) -> dict[str, Any]:
        """The export form: `{"id","source","category","conversations":[{"role","content"}]}`."""
        return {
            "id": self.id,
            "source": self.source,
            "category": self.category,
            "conversations": [message.as_dict() for message in self.conversation],
        }

    def sha256(self) -> str:
        """The hash of the canonical row."""
        return hashlib.sha256(canonical_json(self.as_row()).encode("utf-8")).hexdigest()


def parse_conversation(value: object, where: str) -> Conversation:
    """A conversation from a list of `{"role","content"}`; `where` (file and line) starts every error.

    The order of roles is: at most one system turn, first; then user and assistant by turns, ending with assistant.
    """
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: conversations is {_kind(value)}, expected a list of messages with role and content")
    messages = tuple(_parse_message(item, f"{where}: message {index + 1}") for index, item in enumerate(value))
    turns = messages[1:] if messages[0].role == "system" else messages
    for index, message in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        if message.role != expected:
            raise InputError(f"{where}: turn {index + 1} is of role {message.role!r}, expected {expected!r}")
    if not turns or turns[-1].role != "assistant":
        raise InputError(f"{where}: the last turn must be the assistant's, or there is nothing to learn")
    return messages


def parse_example(row: Mapping[str, Any], where: str) -> Example:
    """An example from an export row; unknown keys are refused."""
    unknown = sorted(set(row) - {"id", "source", "category", "conversations"})
    if unknown:
        raise InputError(f"{where}: unknown key {shown(unknown[0])}; a row has id, source, category, conversations")
    fields = {key: parse_text(row.get(key), f"{where}: {key}") for key in ("id", "source", "category")}
    return Example(conversation=parse_conversation(row.get("conversations"), where), **fields)


def read_examples(path: Path) -> Iterator[Example]:
    """The examples of an exported set; an id that stands twice is an error."""
    for _, example in read_numbered_examples(path):
        yield example


def read_numbered_examples(path: Path) -> Iterator[tuple[int, Example]]:
    """(line number from 1, example) of an exported set; an id that stands twice is an error."""
    seen: dict[str, int] = {}
    for number, row in read_json_lines(path):
        example = parse_example(row, f"{path}:{number}")
        if example.id in seen:
            raise InputError(f"{path}:{number}: the id {shown(example.id)} stands already in line {seen[example.id]}")
        seen[example.id] = number
        yield number, example


def parse_text(value: object, where: str) -> str:
    """Text that is not blank, without NUL and lone surrogates; `where` (file, line and key) starts every error."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} is {_kind(value)}, expected text that is not empty")
    if "\0" in value:
        raise InputError(f"{where} has a NUL character at position {value.index(chr(0))}; remove it")
    if found := _LONE_SURROGATE.search(value):
        raise InputError(f"{where} has a lone surrogate at position {found.start()}; save the text as valid Unicode")
    return value


def _parse_message(value: object, where: str) -> Message:
    if not isinstance(value, dict) or set(value) != {"role", "content"}:
        raise InputError(f"{where}: found {_kind(value)}, expected an object with exactly role and content")
    role = value["role"]
    if role not in ROLES:
        raise InputError(f"{where}: role is {shown(role)}, expected one of {', '.join(ROLES)}")
    return Message(role=role, content=parse_text(value["content"], f"{where}: content"))


def _kind(value: object) -> str:
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "empty text" if not value.strip() else "text"
    if isinstance(value, list) and not value:
        return "an empty list"
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, value))[:80] or 'none'}"
    return f"a value of type {type(value).__name__}"
