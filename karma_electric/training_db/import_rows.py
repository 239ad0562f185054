"""What an import reads: rows of JSON lines, in the project's form or ShareGPT's, or with nothing but conversations."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import MAX_LINE_BYTES, canonical_json, parse_json_object
from karma_electric.conversation import parse_conversation, parse_text
from karma_electric.errors import InputError, shown
from karma_electric.training_db.history import Table
from karma_electric.training_db.messages import from_sharegpt
from karma_electric.training_db.schema import ROLES, STATUSES

OPTIONAL_TEXTS = (
    "hermes_evaluation", "rejection_reason", "template_flag", "scored_at", "notes", "reasoning", "tier",
)  # fmt: skip
_KEYS = ("status", "source", "category", "role", "hermes_score", *OPTIONAL_TEXTS)


@dataclass(frozen=True, slots=True)
class ImportRow:
    """A sound row: the columns that the file gives, `id` among them; where it stands, for messages and for history."""

    table: Table
    values: dict[str, Any]
    where: str
    detail: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be imported: the reason, with file and line."""

    reason: str


def read_import_lines(file: Path, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[ImportRow | BadRow]:
    """Each row of a file of JSON lines. Raises InputError for a file that cannot be read."""
    name = plain_name(file)
    try:
        stream = file.open("rb")
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); expected a file of JSON lines") from error
    with stream:
        number = 0
        while line := stream.readline(max_line_bytes + 1):
            number += 1
            where = f"{file}:{number}"
            if len(line) > max_line_bytes:
                while line and not line.endswith(b"\n"):
                    line = stream.readline(max_line_bytes)
                yield BadRow(f"{where}: the line is longer than {max_line_bytes} bytes; split the row")
            elif line.strip():
                try:
                    values = parse_import_row(_parse_line(line, where), where)
                except InputError as error:
                    yield BadRow(str(error))
                else:
                    yield ImportRow("examples", values, where, f"{name}:{number}")


def parse_import_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The columns of `examples` that a row gives. A row without id gets one from its conversation.

    Raises InputError, starting with `where`, for what cannot be stored.
    """
    unknown = sorted(set(row) - {"id", "conversations", *_KEYS})
    if unknown:
        raise InputError(f"{where}: unknown key {shown(unknown[0])}; expected id, conversations, {', '.join(_KEYS)}")
    for name in ("id", "source", "category"):
        if name in row:
            parse_text(row[name], f"{where}: {name}")
    for name in OPTIONAL_TEXTS:
        value = row.get(name)
        blank = value is None or (isinstance(value, str) and not value.strip())
        if not blank:
            parse_text(value, f"{where}: {name}")
    _check_choice(row, "status", STATUSES, where)
    _check_choice(row, "role", ROLES, where)
    score = row.get("hermes_score")
    if score is not None and not (type(score) is int and 0 <= score <= 40):
        raise InputError(f"{where}: hermes_score is {shown(score)}, expected a whole number from 0 to 40, or null")
    conversation = parse_conversation(from_sharegpt(row.get("conversations")), where)
    stored = canonical_json([message.as_dict() for message in conversation])
    id_ = row["id"] if "id" in row else id_of_content(stored)
    return {"id": id_, **{name: row[name] for name in _KEYS if name in row}, "conversations": stored}


def id_of_content(conversations: str) -> str:
    """The id of a row that has none: `content-` and 16 digits of the SHA-256 of its canonical conversation."""
    return f"content-{hashlib.sha256(conversations.encode('utf-8')).hexdigest()[:16]}"


def plain_name(file: Path) -> str:
    """The name of a file as text that can be stored."""
    return os.fsencode(file.name).decode("utf-8", "replace")


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    if b"\0" in line:
        raise InputError(f"{where}: a NUL byte at byte {line.index(0) + 1} of the line; remove it")
    return parse_json_object(line, where)


def _check_choice(row: dict[str, Any], name: str, choices: tuple[str, ...], where: str) -> None:
    if name in row and row[name] not in choices:
        raise InputError(f"{where}: {name} is {shown(row[name])}, expected one of {', '.join(choices)}")
