"""Rows of JSON lines into the training database, all or none."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, read_json_lines
from karma_electric.conversation import parse_conversation, parse_text
from karma_electric.errors import InputError, shown
from karma_electric.training_db.schema import ROLES, STATUSES
from karma_electric.training_db.store import open_to_write

_OPTIONAL_TEXTS = (
    "hermes_evaluation", "rejection_reason", "template_flag", "scored_at", "notes", "reasoning", "tier",
)  # fmt: skip
_COLUMNS = ("status", "source", "category", "role", "hermes_score", *_OPTIONAL_TEXTS)


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """How many rows were new, and how many were there already with the same content."""

    new: int
    known: int


def import_examples(database: Path, file: Path, *, added_at: datetime.datetime) -> ImportCounts:
    """Add every row of `file` in one transaction.

    The same id with the same content is counted as known; with other content it is an InputError that names the line,
    and nothing is written. A wrong row is an InputError before the database is opened.
    """
    new = known = 0
    rows = [(number, _parse_row(row, f"{file}:{number}")) for number, row in read_json_lines(file)]
    with open_to_write(database) as connection:
        for number, values in rows:
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
                    f"{file}:{number}: {shown(values['id'])} is there with another {differing}; nothing was written"
                )
    return ImportCounts(new=new, known=known)


def _parse_row(row: dict[str, Any], where: str) -> dict[str, Any]:
    unknown = sorted(set(row) - {"id", "conversations", *_COLUMNS})
    if unknown:
        raise InputError(f"{where}: unknown key {shown(unknown[0])}; expected id, conversations, {', '.join(_COLUMNS)}")
    for name in ("id", "source", "category"):
        parse_text(row.get(name), f"{where}: {name}")
    for name in _OPTIONAL_TEXTS:
        value = row.get(name)
        blank = value is None or (isinstance(value, str) and not value.strip())
        if not blank:
            parse_text(value, f"{where}: {name}")
    _check_choice(row, "status", STATUSES, where)
    _check_choice(row, "role", ROLES, where)
    score = row.get("hermes_score")
    if score is not None and not (type(score) is int and 0 <= score <= 40):
        raise InputError(f"{where}: hermes_score is {shown(score)}, expected a whole number from 0 to 40, or null")
    conversation = parse_conversation(row.get("conversations"), where)
    stored = canonical_json([message.as_dict() for message in conversation])
    return {"id": row["id"], **{name: row[name] for name in _COLUMNS if name in row}, "conversations": stored}


def _check_choice(row: dict[str, Any], name: str, choices: tuple[str, ...], where: str) -> None:
    if name in row and row[name] not in choices:
        raise InputError(f"{where}: {name} is {shown(row[name])}, expected one of {', '.join(choices)}")
