"""A whole database file as the source of an import: of the old system (12, 13 or 15 columns), or of this one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, parse_json
from karma_electric.conversation import parse_text
from karma_electric.errors import InputError, shown
from karma_electric.training_db.hashes import PROMPT_COLUMNS, check_content
from karma_electric.training_db.import_rows import BadRow, ImportRow, parse_import_row, plain_name
from karma_electric.training_db.schema import APPLICATION_ID
from karma_electric.training_db.store import open_immutable, open_to_read

_OLD_COLUMNS = frozenset(
    ("id", "status", "source", "category", "conversations", "hermes_score", "hermes_evaluation", "rejection_reason",
     "template_flag", "added_at", "scored_at", "notes")
)  # fmt: skip
_COMPUTED_COLUMNS = frozenset(("content_sha256", "language"))  # of this system; they are computed anew
_LATER_COLUMNS = frozenset(("reasoning", "tier", "role"))
_TABLES = ("examples", "system_prompts", "exports", "history")


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """A row of the table `exports` of an old database, as canonical JSON."""

    text: str


def is_database(file: Path) -> bool:
    """Whether the file begins as an SQLite database does."""
    try:
        if not file.is_file():  # a pipe must not lose its first bytes
            return False
        with file.open("rb") as stream:
            return stream.read(16) == b"SQLite format 3\0"
    except OSError:
        return False


def read_database(file: Path, report: Callable[[str], None]) -> Iterator[ImportRow | BadRow | ExportRecord]:
    """Each row of the database. Columns that are NULL count as not given.

    Raises InputError for a database of something else. `report` gets a line for each table that is not read.
    """
    ours = _application_id(file) == APPLICATION_ID
    with open_to_read(file) if ours else open_immutable(file) as connection:
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        _check_columns(connection, file, tables)
        for name in sorted(tables):
            if name not in _TABLES and not name.startswith(("sqlite_", "examples_fts")):
                report(f"{file}: the table {shown(name)} is not imported; the file keeps it")
        yield from _examples(connection, file, ours=ours)
        if "system_prompts" in tables:
            yield from _prompts(connection, file)
        if "exports" in tables:
            yield from _exports(connection, file, ours=ours)


def _application_id(file: Path) -> int:
    with open_immutable(file) as connection:
        return int(connection.execute("PRAGMA application_id").fetchone()[0])


def _check_columns(connection: sqlite3.Connection, file: Path, tables: set[str]) -> None:
    if "examples" not in tables:
        raise InputError(f"{file}: a database without the table examples; expected one of the old or this system")
    columns = {row["name"] for row in connection.execute("PRAGMA table_info(examples)")}
    missing, unknown = _OLD_COLUMNS - columns, columns - _OLD_COLUMNS - _LATER_COLUMNS - _COMPUTED_COLUMNS
    if missing:
        raise InputError(f"{file}: examples has no column {sorted(missing)[0]}; expected 12, 13 or 15 columns")
    if unknown:
        raise InputError(f"{file}: examples has a column {shown(sorted(unknown)[0])}, which would be lost")


def _examples(connection: sqlite3.Connection, file: Path, *, ours: bool) -> Iterator[ImportRow | BadRow]:
    for number, row in enumerate(connection.execute("SELECT * FROM examples ORDER BY rowid"), 1):
        where = f"{file}: row {number}, {shown(row['id'])}"
        try:
            if ours:
                check_content(row, where)
            yield ImportRow("examples", _parse_example(row, where), where, f"{plain_name(file)}: row {number}")
        except InputError as error:
            yield BadRow(str(error))


def _parse_example(row: sqlite3.Row, where: str) -> dict[str, Any]:
    names = [name for name in row.keys() if name not in _COMPUTED_COLUMNS]  # noqa: SIM118
    given = {name: row[name] for name in names if row[name] is not None}
    added_at = given.pop("added_at", None)
    for name in ("source", "category"):
        if not str(given.get(name, "x")).strip():
            del given[name]
    text = given.get("conversations")
    if not isinstance(text, str):
        raise InputError(f"{where}: conversations is {shown(text)}, expected JSON text")
    given["conversations"] = parse_json(_encode(text, where), f"{where}: conversations", expected="a list of messages")
    values = parse_import_row(given, where)
    if added_at is not None:
        values["added_at"] = parse_text(added_at, f"{where}: added_at")
    return values


def _prompts(connection: sqlite3.Connection, file: Path) -> Iterator[ImportRow | BadRow]:
    columns = {row["name"] for row in connection.execute("PRAGMA table_info(system_prompts)")}
    if unknown := columns - set(PROMPT_COLUMNS):
        raise InputError(f"{file}: system_prompts has a column {shown(sorted(unknown)[0])}, which would be lost")
    for row in connection.execute("SELECT * FROM system_prompts ORDER BY rowid"):
        where = f"{file}: system prompt {shown(row['id'])}"
        try:
            values = {name: row[name] for name in PROMPT_COLUMNS if name in row.keys() and row[name] is not None}  # noqa: SIM118
            for name in values.keys() | {"id", "content"}:
                parse_text(values.get(name), f"{where}: {name}")
            yield ImportRow("system_prompts", values, where, plain_name(file))
        except InputError as error:
            yield BadRow(str(error))


def _exports(connection: sqlite3.Connection, file: Path, *, ours: bool) -> Iterator[ExportRecord | BadRow]:
    for number, row in enumerate(connection.execute("SELECT * FROM exports ORDER BY rowid"), 1):
        where = f"{file}: exports, row {number}"
        try:
            if ours:
                yield ExportRecord(row["record"])
                continue
            text = canonical_json(dict(row))
            _encode(text, where)
            yield ExportRecord(text)
        except (InputError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, InputError) else f"{where}: {error}"
            yield BadRow(reason)


def _encode(text: str, where: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: a lone surrogate or a byte that is not UTF-8 at position {error.start}") from error
