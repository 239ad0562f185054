"""Rows for databases, sets and patches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from karma_electric.canonical import write_json_lines
from karma_electric.training_db.importing import ImportCounts, import_examples

ADDED_AT = "2026-11-21T10:00:00+00:00"


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


def import_rows(database: Path, rows: list[dict[str, Any]]) -> ImportCounts:
    """Import rows through a file beside the database."""
    import datetime

    file = write_rows(database.with_name("import.jsonl"), rows)
    return import_examples(database, file, added_at=datetime.datetime.fromisoformat(ADDED_AT))
