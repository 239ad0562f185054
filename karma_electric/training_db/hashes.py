"""The hashes that the training database keeps: of what a model learns from, and of a whole row."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from karma_electric.canonical import canonical_json
from karma_electric.errors import IntegrityError, shown

EXAMPLE_COLUMNS = (
    "id", "status", "source", "category", "hermes_score", "hermes_evaluation", "rejection_reason", "template_flag",
    "added_at", "scored_at", "notes", "reasoning", "tier", "role", "content_sha256", "conversations",
)  # fmt: skip
PROMPT_COLUMNS = ("id", "content", "description")
COLUMNS = {"examples": EXAMPLE_COLUMNS, "system_prompts": PROMPT_COLUMNS}
_HASHED_COLUMNS = EXAMPLE_COLUMNS[:-1]  # the conversation is in content_sha256


def content_sha256(id_: str, source: str, category: str, conversations: str) -> str:
    """What `Example.sha256` gives for the row: the hash of id, source, category and conversation.

    `conversations` is canonical JSON text. Accepting, rejecting or a note leaves the hash as it is.
    """
    return hashlib.sha256(_canonical_row(id_, source, category, conversations)).hexdigest()


def _canonical_row(id_: str, source: str, category: str, conversations: str) -> bytes:
    """The row in canonical JSON, put together around the conversation's text, which takes longest to write."""
    encode = json.encoder.encode_basestring
    return (
        f'{{"category":{encode(category)},"conversations":{conversations},"id":{encode(id_)},'
        f'"source":{encode(source)}}}'
    ).encode()


def row_sha256(table: str, row: Mapping[str, Any]) -> str:
    """The hash of every column of a row of `examples` or `system_prompts`; history chains these."""
    names = _HASHED_COLUMNS if table == "examples" else PROMPT_COLUMNS
    return _hash([row[name] for name in names])


def check_content(row: Mapping[str, Any], where: str) -> None:
    """Raise IntegrityError unless the content of a row of `examples` has the hash that stands beside it."""
    checked_content(row["id"], row["source"], row["category"], row["conversations"], row["content_sha256"], where)


def checked_content(id_: str, source: str, category: str, conversations: str, sha256: str, where: str) -> bytes:
    """The content of a row of `examples` in canonical JSON. Raises IntegrityError unless it has the hash `sha256`."""
    content = _canonical_row(id_, source, category, conversations)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise IntegrityError(
            f"{where}: example {shown(id_)} is not what its content_sha256 says; "
            "another program wrote it: restore the database"
        )
    return content


def register_functions(connection: sqlite3.Connection) -> None:
    """The functions that migrations call."""
    connection.create_function("karma_canonical", 1, canonical_text, deterministic=True)
    connection.create_function("karma_content_sha256", 4, content_sha256, deterministic=True)
    connection.create_function("karma_row_sha256", len(_HASHED_COLUMNS), _hash_values, deterministic=True)
    connection.create_function("karma_prompt_sha256", len(PROMPT_COLUMNS), _hash_values, deterministic=True)


def canonical_text(text: str) -> str:
    """JSON text in its canonical spelling."""
    return canonical_json(json.loads(text))


def _hash_values(*values: str | int | None) -> str:
    return _hash(list(values))


def _hash(values: list[str | int | None]) -> str:
    return hashlib.sha256(canonical_json(values).encode("utf-8")).hexdigest()
