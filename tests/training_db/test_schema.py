"""The tables: what they refuse, what they index, and how an earlier schema becomes this one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from karma_electric.errors import InputError
from karma_electric.training_db.schema import ROLES, SCHEMA_VERSION, STATUSES
from karma_electric.training_db.store import (
    open_to_read,
    open_to_write,
    upgrade,
)
from tests.training_db.rows import (
    INSERT,
    first_schema,
    import_rows,
    read,
    row,
    stored,
    whole,
)


def test_an_empty_database_is_told_how_to_become_one(tmp_path: Path) -> None:
    (tmp_path / "training.db").touch()
    with pytest.raises(InputError, match="of schema 0, expected 2; `karma db upgrade --db"):
        read(tmp_path / "training.db")
    assert upgrade(tmp_path / "training.db") == 0
    assert read(tmp_path / "training.db") == 0


def refuse(connection: sqlite3.Connection, *statements: str) -> None:
    """Each of the statements breaks a rule of the schema."""
    for statement in statements:
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement)


def test_the_schema_refuses_what_the_contract_does_not_allow(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        refuse(
            connection,
            "UPDATE examples SET status = 'done'",
            "UPDATE examples SET role = 'judge'",
            "UPDATE examples SET hermes_score = 41",
            "UPDATE examples SET hermes_score = 'good'",
            "UPDATE examples SET conversations = '[{]'",
            "UPDATE examples SET id = ''",
            "UPDATE examples SET category = NULL",
            "INSERT INTO examples (id, source, category, conversations, added_at) VALUES ('a', '', '', '[]', '')",
        )
        for column, values in (("status", STATUSES), ("role", ROLES)):
            for value in values:
                connection.execute(f"UPDATE examples SET {column} = ?", (value,))


def test_the_full_text_index_follows_insert_update_and_delete(database: Path) -> None:
    def matches(connection: sqlite3.Connection, text: str) -> list[str]:
        query = "SELECT id FROM examples_fts WHERE examples_fts MATCH ? ORDER BY id"
        return [found[0] for found in connection.execute(query, (text,))]

    with open_to_write(database) as connection:
        connection.execute(INSERT, ("new", '["volcano"]', "pending", "0" * 64))
        assert matches(connection, "volcano") == matches(connection, "id: new") == ["new"]
        connection.execute("UPDATE examples SET conversations = '[\"glacier\"]', category = 'ice' WHERE id = 'new'")
        assert matches(connection, "volcano") == []
        assert matches(connection, "glacier") == matches(connection, "category: ice") == ["new"]
        connection.execute("INSERT INTO examples_fts (examples_fts, rank) VALUES ('integrity-check', 1)")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("VACUUM")  # may give rows other numbers, by which the index finds them
        assert matches(connection, "glacier") == ["new"]
        connection.execute("INSERT INTO examples_fts (examples_fts, rank) VALUES ('integrity-check', 1)")


def test_the_index_holds_the_words_that_a_person_reads(database: Path) -> None:
    text = 'First\nsecond\ttab "quoted" C:\\new [{"content":"x","role":"user"}] \\n konec.'
    turns = [{"role": "system", "content": "Be brief."}, *row("x", text)["conversations"]]
    import_rows(database, [row("x", conversations=turns)])
    with open_to_read(database) as connection:
        (found,) = connection.execute("SELECT conversations FROM examples_text WHERE id = 'x'").fetchone()
        assert found == f"Be brief.\nHello from x\n{text}\n"
        for word in ("second", "tab", "new", "konec"):
            query = "SELECT id FROM examples_fts WHERE examples_fts MATCH ?"
            assert [match[0] for match in connection.execute(query, (word,))] == ["x"], word
        assert connection.execute("SELECT id FROM examples_fts WHERE examples_fts MATCH 'assistant'").fetchall() == []


def test_an_example_is_neither_deleted_nor_renamed_nor_overwritten(database: Path) -> None:
    before = stored(database)
    with closing(sqlite3.connect(database)) as connection:
        refuse(
            connection,
            "DELETE FROM examples",
            "UPDATE examples SET id = 'z' WHERE id = 'a'",
            "INSERT OR REPLACE INTO examples SELECT * FROM examples WHERE id = 'a'",
            "DELETE FROM history",
            "UPDATE history SET at = 'never'",
            "INSERT OR REPLACE INTO history SELECT * FROM history WHERE number = 1",
            "INSERT INTO history SELECT 9, at, command, detail, subject, id, NULL, after_sha256, NULL FROM history",
        )
    assert stored(database) == before


def test_the_first_schema_is_upgraded_on_disk_or_only_in_memory(tmp_path: Path) -> None:
    old = first_schema(tmp_path / "old.db")
    before = old.read_bytes()
    in_memory = {table: stored(old, table) for table in ("examples", "history", "system_prompts", "exports")}
    assert old.read_bytes() == before
    assert upgrade(old) == 1
    assert upgrade(old) == SCHEMA_VERSION
    assert {table: stored(whole(old), table) for table in in_memory} == in_memory
    assert [(found["id"], found["status"], found["added_at"], found["role"]) for found in in_memory["examples"]] == [
        ("a", "rejected", "t-a", "reward-evaluator"), ("b", "accepted", "t-b", "reward-evaluator")
    ]  # fmt: skip
    assert in_memory["examples"][0]["conversations"].startswith('[{"content":"Hello","role":"user"}')
    assert [(found["number"], found["at"], found["command"], found["id"]) for found in in_memory["history"]] == [
        (1, "t-a", "upgrade", "a"), (2, "t-b", "upgrade", "b"), (3, "t-b", "upgrade", "p")
    ]  # fmt: skip
    with open_to_read(old) as connection:
        assert (
            connection.execute("SELECT count(*) FROM examples_fts WHERE examples_fts MATCH 'dobry'").fetchone()[0] == 2
        )


def test_an_old_database_that_is_large_is_not_upgraded_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karma_electric.training_db.store.MAX_UPGRADE_IN_MEMORY_BYTES", 1000)
    old = first_schema(tmp_path / "old.db")
    with pytest.raises(InputError, match=r"of schema 1, expected 2; `karma db upgrade --db .*old\.db` brings it there"):
        read(old)
