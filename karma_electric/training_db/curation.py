"""What a curator does to an example: accept, reject, archive, edit. Each takes a connection of `open_to_write`."""

from __future__ import annotations

import datetime
import json
import sqlite3
from typing import Any

from karma_electric.canonical import canonical_json, parse_json
from karma_electric.conversation import parse_conversation, parse_text
from karma_electric.errors import InputError, shown
from karma_electric.training_db.hashes import row_sha256
from karma_electric.training_db.history import Ledger
from karma_electric.training_db.messages import from_sharegpt
from karma_electric.training_db.store import find_example


def accept(connection: sqlite3.Connection, id_: str, *, at: datetime.datetime) -> bool:
    """Make an example `accepted`; False when it was. The reason of an earlier rejection stays in history only.

    Raises InputError for an unknown id, and for a conversation that a training set cannot take.
    """
    row = find_example(connection, id_)
    try:
        parse_conversation(json.loads(row["conversations"]), shown(id_))
    except ValueError as error:
        raise InputError(f"{shown(id_)}: conversations is not JSON; edit the row") from error
    return Ledger(connection, at=at, command="accept").change(
        "examples", row, {"status": "accepted", "rejection_reason": None}
    )


def reject(connection: sqlite3.Connection, id_: str, reason: str, *, at: datetime.datetime) -> bool:
    """Make an example `rejected` with a reason; False when it was, with this reason. An unknown id is an InputError."""
    parse_text(reason, "the reason")
    row = find_example(connection, id_)
    values = {"status": "rejected", "rejection_reason": reason}
    return Ledger(connection, at=at, command="reject").change("examples", row, values)


def archive(connection: sqlite3.Connection, id_: str, *, at: datetime.datetime) -> bool:
    """Make an example `archived`; False when it was. An unknown id is an InputError."""
    row = find_example(connection, id_)
    return Ledger(connection, at=at, command="archive").change("examples", row, {"status": "archived"})


def text_to_edit(connection: sqlite3.Connection, id_: str) -> tuple[str, str]:
    """The conversation as indented JSON, and the hash of the row, which `edit` wants back."""
    row = find_example(connection, id_)
    text = json.dumps(json.loads(row["conversations"]), ensure_ascii=False, indent=2) + "\n"
    return text, row_sha256("examples", row)


def edit(
    connection: sqlite3.Connection, id_: str, text: str, *, at: datetime.datetime, expected_sha256: str | None = None
) -> bool:
    """Replace the conversation by `text`: a JSON list of messages, or one message a line. False when it is the same.

    The status stays. Raises InputError for text that is no conversation, and when the row is no longer the one of
    `expected_sha256`: somebody else changed it meanwhile.
    """
    row = find_example(connection, id_)
    conversation = parse_conversation(from_sharegpt(_read_messages(text, shown(id_))), shown(id_))
    if expected_sha256 is not None and row_sha256("examples", row) != expected_sha256:
        raise InputError(f"{shown(id_)} was changed while it was edited; edit it again")
    stored = canonical_json([message.as_dict() for message in conversation])
    return Ledger(connection, at=at, command="edit").change("examples", row, {"conversations": stored})


def set_system_prompt(
    connection: sqlite3.Connection, id_: str, content: str, description: str | None, *, at: datetime.datetime
) -> bool:
    """Add a system prompt or replace its text; False when it is there already. The earlier text stays in history."""
    values = {"id": parse_text(id_, "the prompt's id"), "content": parse_text(content, f"prompt {shown(id_)}")}
    values["description"] = None if description is None else parse_text(description, "the description")  # type: ignore[assignment]
    ledger = Ledger(connection, at=at, command="prompt")
    row = connection.execute("SELECT * FROM system_prompts WHERE id = ?", (id_,)).fetchone()
    if row is None:
        ledger.add("system_prompts", values)
        return True
    return ledger.change("system_prompts", row, values)


def _read_messages(text: str, where: str) -> Any:
    """The JSON value of the whole text, or the list of the values of its lines."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines or text.lstrip().startswith("["):
        return parse_json(_encode(text, where), where, expected="a list of messages")
    return [parse_json(_encode(line, where), f"{where}: line {number}", expected="a message") for number, line in lines]


def _encode(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: a lone surrogate at position {error.start}; save the text as UTF-8") from error
