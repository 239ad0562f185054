from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from karma_electric.errors import InputError
from karma_electric.training_db.importing import ImportCounts
from karma_electric.training_db.store import open_to_read
from tests.training_db.rows import ADDED_AT, accepted, import_rows, row


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "training.db"


def stored(database: Path) -> list[dict[str, Any]]:
    with open_to_read(database) as connection:
        return [dict(found) for found in connection.execute("SELECT * FROM examples ORDER BY id")]


def test_every_column_is_stored(database: Path) -> None:
    columns: dict[str, Any] = {
        "status": "rejected", "hermes_score": 0, "hermes_evaluation": "thin", "rejection_reason": "too short",
        "template_flag": "greeting", "scored_at": "2026-01-01", "notes": "  ", "reasoning": "r", "tier": "gold",
        "role": "reward-evaluator",
    }  # fmt: skip
    assert import_rows(database, [row("a", **columns)]) == ImportCounts(new=1, known=0)
    (found,) = stored(database)
    assert json.loads(found.pop("conversations")) == row("a")["conversations"]
    assert found == {"id": "a", "source": "test", "category": "greeting", "added_at": ADDED_AT, **columns}


def test_columns_that_a_row_lacks_have_their_defaults(database: Path) -> None:
    import_rows(database, [row("a")])
    (found,) = stored(database)
    assert (found["status"], found["role"], found["hermes_score"], found["tier"]) == (
        "pending", "conversational", None, None
    )  # fmt: skip


def test_known_rows_are_counted_and_unchanged(database: Path) -> None:
    import_rows(database, [accepted("a"), accepted("b", notes="first")])
    before = stored(database)
    assert import_rows(database, [row("a"), row("c"), row("c")]) == ImportCounts(new=1, known=2)
    assert [found for found in stored(database) if found["id"] != "c"] == before


OTHER_CONTENT = {
    "conversations": row("b", "Another answer."),
    "category": row("b", category="other"),
    "hermes_score": row("b", hermes_score=3),
    "notes": row("b", notes="more"),
}


@pytest.mark.parametrize(("column", "other"), OTHER_CONTENT.items(), ids=OTHER_CONTENT.keys())
def test_the_same_id_with_other_content_is_refused_and_nothing_written(
    database: Path, column: str, other: dict[str, Any]
) -> None:
    import_rows(database, [row("b")])
    before = stored(database)
    with pytest.raises(InputError, match=rf"import\.jsonl:2: 'b' is there with another {column}; nothing was written"):
        import_rows(database, [row("a"), other, row("c")])
    assert stored(database) == before


def test_two_rows_of_one_file_that_differ_are_refused(database: Path) -> None:
    with pytest.raises(InputError, match=r"import\.jsonl:2: 'a' is there with another conversations"):
        import_rows(database, [row("a"), row("a", "Another answer.")])
    assert stored(database) == []


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (row("a", added_at="now"), "unknown key 'added_at'; expected id, conversations, status"),
    "no id": ({k: v for k, v in row("a").items() if k != "id"}, "id is missing"),
    "a blank id": (row(" "), "id is empty text"),
    "a NUL in the id": (row("\0a"), "id has a NUL character"),
    "a lone surrogate in the id": (row("\ud800"), "id has a lone surrogate"),
    "a category that is a number": (row("a", category=3), "category is a value of type int"),
    "no source": (row("a", source=None), "source is missing"),
    "an unknown status": (row("a", status="done"), "status is 'done', expected one of accepted, rejected"),
    "no status": (row("a", status=None), "status is None, expected one of accepted, rejected"),
    "an unknown role": (row("a", role="judge"), "role is 'judge', expected one of conversational"),
    "a score above 40": (row("a", hermes_score=41), "hermes_score is 41, expected a whole number from 0 to 40"),
    "a score below 0": (row("a", hermes_score=-1), "hermes_score is -1"),
    "a score that is text": (row("a", hermes_score="35"), "hermes_score is '35'"),
    "a score that is a fraction": (row("a", hermes_score=35.0), "hermes_score is 35.0"),
    "a score that is true": (row("a", hermes_score=True), "hermes_score is True"),
    "a score of a thousand digits": (row("a", hermes_score=10**1000), "hermes_score is 1000"),
    "notes that are an object": (row("a", notes={"a": 1}), "notes is an object with the keys a"),
    "notes that are a number": (row("a", notes=5), "notes is a value of type int"),
    "a lone surrogate in the notes": (row("a", notes="\udc00"), "notes has a lone surrogate"),
    "a bad conversation": (row("a", conversations=[]), "conversations is an empty list"),
    "the assistant first": (row("a", conversations=row("a")["conversations"][1:]), "turn 1 is of role 'assistant'"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_with_its_line_and_nothing_is_written(
    database: Path, bad: dict[str, Any], message: str
) -> None:
    import_rows(database, [row("known")])
    before = database.read_bytes()
    file = database.with_name("import.jsonl")
    file.write_text(json.dumps(row("good")) + "\n\n" + json.dumps(bad) + "\n" + json.dumps(row("later")) + "\n")
    with pytest.raises(InputError) as caught:
        import_file(database, file)
    assert str(caught.value).startswith(f"{file}:3: {message}")
    assert database.read_bytes() == before


def import_file(database: Path, file: Path) -> ImportCounts:
    import datetime

    from karma_electric.training_db.importing import import_examples

    return import_examples(database, file, added_at=datetime.datetime.fromisoformat(ADDED_AT))


@pytest.mark.parametrize("text", [None, "not JSON\n", '{"id": "a"}\n'])
def test_a_file_that_cannot_be_imported_makes_no_database(database: Path, text: str | None) -> None:
    file = database.with_name("rows.jsonl")
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"rows\.jsonl:"):
        import_file(database, file)
    assert not database.exists()


def test_a_full_text_search_finds_an_imported_row(database: Path) -> None:
    import_rows(database, [row("a", "Water boils at a hundred degrees."), row("b", "Náhoda.")])
    with open_to_read(database) as connection:
        query = "SELECT id FROM examples_fts WHERE examples_fts MATCH ?"
        assert [found["id"] for found in connection.execute(query, ("boils",))] == ["a"]
        assert [found["id"] for found in connection.execute(query, ("nahoda",))] == ["b"]


def test_rows_are_gone_when_the_process_dies_in_the_transaction(database: Path) -> None:
    """Half an import is none: the next writer finds the log of a transaction that never ended."""
    import subprocess
    import sys

    import_rows(database, [row("a")])
    code = (
        "import os, sys, pathlib\nfrom karma_electric.training_db.store import open_to_write\n"
        "with open_to_write(pathlib.Path(sys.argv[1])) as connection:\n"
        "    connection.execute(\"UPDATE examples SET notes = 'half'\")\n    os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(database)], check=False).returncode == 9
    assert import_rows(database, [row("b")]) == ImportCounts(new=1, known=0)
    assert [(found["id"], found["notes"]) for found in stored(database)] == [("a", None), ("b", None)]
    with sqlite3.connect(database) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
