"""Rows for databases, sets and patches."""

from __future__ import annotations

import contextlib
import datetime
import sqlite3
from pathlib import Path
from typing import Any

from karma_electric.canonical import write_json_lines
from karma_electric.training_db import schema
from karma_electric.training_db.history import check_database
from karma_electric.training_db.importing import ImportCounts, import_examples
from karma_electric.training_db.schema import APPLICATION_ID
from karma_electric.training_db.store import open_to_read, open_to_write

ADDED_AT = "2026-11-21T10:00:00+00:00"
NOW = datetime.datetime.fromisoformat(ADDED_AT)
INSERT = (
    "INSERT INTO examples (id, source, category, conversations, added_at, status, content_sha256) "
    "VALUES (?, 's', 'c', ?, 't', ?, ?)"
)


def row(id_: str, answer: str = "Good day.", **changes: Any) -> dict[str, Any]:
    """An import row; `changes` set other columns. Also an export row, when nothing but its keys is changed."""
    conversation = [{"role": "user", "content": f"Hello from {id_}"}, {"role": "assistant", "content": answer}]
    return {"id": id_, "source": "test", "category": "greeting", "conversations": conversation, **changes}


def accepted(id_: str, answer: str = "Good day.", **changes: Any) -> dict[str, Any]:
    return row(id_, answer, status="accepted", **changes)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_json_lines(rows))
    return path


def import_rows(database: Path, rows: list[dict[str, Any]], **options: Any) -> ImportCounts:
    """Import rows through a file beside the database; strictly, unless `options` say otherwise."""
    return import_file(database, write_rows(database.with_name("import.jsonl"), rows), **{"strict": True, **options})


def import_file(database: Path, file: Path, **options: Any) -> ImportCounts:
    return import_examples(database, file, added_at=NOW, **options)


def write_database(path: Path, script: str) -> Path:
    """Run SQL on a database, as another program would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(script)
    return path


def whole(database: Path) -> Path:
    """The database, after a check of everything that can be checked."""
    with open_to_write(database) as connection:
        check_database(connection, str(database))
    return database


def stored(database: Path, table: str = "examples") -> list[dict[str, Any]]:
    """Every row of a table, in the order of its first column; without `language`, which the database computes."""
    with open_to_read(database) as connection:
        rows = [dict(found) for found in connection.execute(f"SELECT * FROM {table} ORDER BY 1")]
    return [{name: value for name, value in found.items() if name != "language"} for found in rows]


def language(database: Path, id_: str) -> str:
    """The language that the database says a row is in."""
    with open_to_read(database) as connection:
        return str(connection.execute("SELECT language FROM examples WHERE id = ?", (id_,)).fetchone()[0])


def read(path: Path) -> int:
    """The number of examples."""
    with open_to_read(path) as connection:
        return int(connection.execute("SELECT count(*) FROM examples").fetchone()[0])


def first_schema(path: Path) -> Path:
    """A database as the first version of this project made it."""
    script = schema._MIGRATIONS[0] + f"PRAGMA user_version = 1; PRAGMA application_id = {APPLICATION_ID};"
    columns = "(id, status, source, category, conversations, added_at, notes, role)"
    turns = '[{"role": "user", "content": "Hello"},\n {"role": "assistant", "content": "Dobrý den."}]'
    for id_, status in (("b", "accepted"), ("a", "rejected")):
        script += (
            f"INSERT INTO examples {columns} VALUES ('{id_}', '{status}', 's', 'c', '{turns}', 't-{id_}', NULL, "
            "'reward-evaluator');"
        )
    return write_database(path, script + "INSERT INTO system_prompts VALUES ('p', 'Be calm.', NULL);")
