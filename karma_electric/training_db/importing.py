"""Rows of JSON lines into the training database, all or none."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, read_json_lines
from karma_electric.conversation import parse_conversation
from karma_electric.errors import InputError
from karma_electric.training_db.store import open_to_write

_COLUMNS = (
    "status", "source", "category", "hermes_score", "hermes_evaluation", "rejection_reason", "template_flag",
    "scored_at", "notes", "reasoning", "tier", "role",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """How many rows were new, and how many were there already with the same content."""

    new: int
    known: int


def import_examples(database: Path, file: Path, *, added_at: datetime.datetime) -> ImportCounts:
    """Add every row of `file` in one transaction.

    The same id with the same content is counted as known; with other content it is an InputError that names the line,
    and nothing is written.
    """
    new = known = 0
    with open_to_write(database) as connection:
        for number, row in read_json_lines(file):
            values = _parse_row(row, f"{file}:{number}")
            found = connection.execute("SELECT * FROM examples WHERE id = ?", (values["id"],)).fetchone()
            if found is None:
                values["added_at"] = added_at.isoformat(timespec="seconds")
                names = ", ".join(values)
                marks = ", ".join("?" * len(values))
                connection.execute(f"INSERT INTO examples ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608
                new += 1
            elif all(found[name] == value for name, value in values.items()):
                known += 1
            else:
                differing = next(name for name, value in values.items() if found[name] != value)
                raise InputError(
                    f"{file}:{number}: {values['id']!r} is there with another {differing}; nothing was written"
                )
    return ImportCounts(new=new, known=known)


def _parse_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = sorted(set(row) - {"id", "conversations", *_COLUMNS})
    if unknown:
        raise InputError(f"{where}: unknown key {unknown[0]!r}; expected id, conversations, {', '.join(_COLUMNS)}")
    for name in ("id", "source", "category"):
        if not isinstance(row.get(name), str) or not row[name]:
            raise InputError(f"{where}: {name} is {row.get(name)!r}, expected text")
    conversation = parse_conversation(row.get("conversations"), where)
    stored = canonical_json([message.as_dict() for message in conversation])
    return {"id": row["id"], **{name: row[name] for name in _COLUMNS if name in row}, "conversations": stored}
