from __future__ import annotations

import contextlib
import datetime
import json
import sqlite3
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.errors import InputError, IntegrityError, KarmaError
from karma_electric.training_db import curation
from karma_electric.training_db.dump import dump_lines, restore, write_dump
from karma_electric.training_db.store import open_to_write
from tests.cli.running import KARMA, ROOT
from tests.training_db.rows import NOW, accepted, first_schema, import_rows, row, stored, whole, write_database
from tests.training_db.test_importing import ROWS, TEXTS

TABLES = ("examples", "system_prompts", "exports", "history")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with a row in every table and a patch of each kind."""
    path = tmp_path / "training.db"
    import_rows(path, [accepted("b", "Žluťoučký kůň 🐎\n\u2028 " * 30, notes=" "), row("a", hermes_score=0)])
    with open_to_write(path) as connection:
        curation.set_system_prompt(connection, "persona", "Be calm.", "for chat", at=NOW)
        curation.set_system_prompt(connection, "persona", "Be brief.", None, at=NOW)
        curation.reject(connection, "a", "thin", at=NOW)
        text, _ = curation.text_to_edit(connection, "b")
        curation.edit(connection, "b", text.replace("kůň", "pes", 1), at=NOW)
        connection.execute("INSERT INTO exports (record) VALUES ('{\"rows\":3764}')")
    return path


def rows_of(path: Path) -> dict[str, list[dict[str, Any]]]:
    return {table: stored(path, table) for table in TABLES}


def schema_of(path: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        pragmas = [connection.execute(f"PRAGMA {name}").fetchone() for name in ("user_version", "application_id")]
        return pragmas + connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()


def dumped(path: Path) -> str:
    return "".join(dump_lines(path))


def test_every_row_of_every_table_comes_back(database: Path, tmp_path: Path) -> None:
    write_dump(database, tmp_path / "dump.jsonl")
    assert restore(tmp_path / "dump.jsonl", tmp_path / "new" / "restored.db") == 2
    restored = whole(tmp_path / "new" / "restored.db")
    assert all(rows_of(database).values()), "the fixture has a row in every table"
    assert rows_of(restored) == rows_of(database)
    assert schema_of(restored) == schema_of(database)
    assert dumped(restored) == dumped(database) == (tmp_path / "dump.jsonl").read_text("utf-8")
    assert [path.name for path in restored.parent.iterdir()] == ["restored.db"]
    with open_to_write(restored) as connection:  # it goes on where the other stopped
        assert curation.accept(connection, "a", at=NOW)
        assert (
            connection.execute("SELECT id FROM examples_fts WHERE examples_fts MATCH 'zlutoucky'").fetchone()["id"]
            == "b"
        )
    whole(restored)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["accept", "reject", "archive", "edit"]), st.integers(0, 3), TEXTS), max_size=6
)


@settings(max_examples=20)
@given(st.dictionaries(TEXTS, ROWS, min_size=1, max_size=4), ACTIONS, st.dictionaries(TEXTS, TEXTS, max_size=2))
def test_restore_of_a_dump_is_the_same_database(
    rows: dict[str, dict[str, Any]], actions: list[tuple[str, int, str]], prompts: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        first, second, file = (Path(name) / part for part in ("1.db", "2.db", "dump.jsonl"))
        import_rows(first, [{"id": id_, **values} for id_, values in rows.items()])
        with open_to_write(first) as connection:
            for id_, content in prompts.items():
                curation.set_system_prompt(connection, id_, content, None, at=NOW)
                connection.execute(
                    "INSERT INTO exports (record) VALUES (?)", (json.dumps(content, ensure_ascii=False),)
                )
            for number, (action, index, text) in enumerate(actions):
                act(connection, action, list(rows)[index % len(rows)], text, NOW + datetime.timedelta(seconds=number))
        write_dump(first, file)
        restore(file, second)
        assert rows_of(whole(second)) == rows_of(first)
        assert dumped(second) == dumped(first)
        assert dumped(second).count("\n") == 1 + sum(len(found) for found in rows_of(first).values())


def act(connection: sqlite3.Connection, action: str, id_: str, text: str, at: datetime.datetime) -> None:
    if action == "reject":
        curation.reject(connection, id_, text, at=at)
    elif action == "edit":
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": text * 9}]
        curation.edit(connection, id_, json.dumps(turns), at=at)
    else:
        getattr(curation, action)(connection, id_, at=at)


def test_the_dump_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    import_rows(tmp_path / "1.db", [row("a"), row("b")])
    import_rows(tmp_path / "2.db", [row("b"), row("a")])
    examples = [
        [line for line in dump_lines(tmp_path / name) if line.startswith('{"examples"')] for name in ("1.db", "2.db")
    ]
    assert examples[0] == examples[1]


def test_a_turn_of_a_megabyte(tmp_path: Path) -> None:
    import_rows(tmp_path / "1.db", [row("a", "Dobrý den 🐎 \\n " * 70_000)])
    write_dump(tmp_path / "1.db", tmp_path / "dump.jsonl")
    restore(tmp_path / "dump.jsonl", tmp_path / "2.db")
    assert rows_of(tmp_path / "2.db") == rows_of(tmp_path / "1.db")


def test_a_dump_of_the_first_schema_is_that_of_its_upgrade(tmp_path: Path) -> None:
    old = first_schema(tmp_path / "old.db")
    restore(write(tmp_path / "dump.jsonl", dumped(old)), tmp_path / "new.db")
    assert rows_of(whole(tmp_path / "new.db")) == rows_of(old)


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def change(text: str, found: str, put: str) -> str:
    assert found in text
    return text.replace(found, put, 1)


BAD_DUMPS: dict[str, tuple[Any, str]] = {
    "an empty file": (lambda text: "", r"dump\.jsonl:1: found an empty file, expected {"),
    "no header": (lambda text: text.split("\n", 1)[1], r"dump\.jsonl:1: found {'system_prompts'"),
    "another schema": (lambda text: change(text, '"schema":2', '"schema":3'), r"dump\.jsonl:1: found {'schema': 3}"),
    "an unknown table": (lambda text: text + '{"x":{}}\n', r"dump\.jsonl:\d+: not a row of system_prompts, examples"),
    "a column too few": (lambda text: change(text, '"notes":null,', ""), r"dump\.jsonl:3: not a row of"),
    "a row that stands twice": (lambda text: change(text, "{\"examples", text.splitlines()[2] + "\n{\"examples"),
        r"dump\.jsonl:4: examples does not take this row"),
    "a wrong status": (lambda text: change(text, '"rejected"', '"done"'), r"dump\.jsonl:3: examples does not take"),
    "a value of another type": (lambda text: change(text, '"source":"test"', '"source":["t"]'), r"jsonl:3: examples d"),
    "a number too large": (lambda text: change(text, '"hermes_score":0', '"hermes_score":1' + "0" * 30), r"jsonl:3: e"),
    "a lone surrogate": (lambda text: change(text, '"source":"test"', '"source":"\\ud800"'), r"jsonl:3: a lone surrog"),
    "half a line": (lambda text: text[:-20], r"dump\.jsonl:\d+: not JSON"),
    "history that is missing": (lambda text: text[: text.rindex("\n{")], "examples 'b' is not what history"),
    "history with a gap": (lambda text: change(text, '"number":2,', '"number":9,'), "history does not take this row"),
    "another text": (lambda text: change(text, "Hello from a", "Hello from A"), "examples 'a' is not what history"),
    "another status": (lambda text: change(text, '"rejected"', '"accepted"'), "examples 'a' is not what history says"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), BAD_DUMPS.values(), ids=BAD_DUMPS.keys())
def test_what_is_no_dump_is_refused_and_leaves_nothing(
    database: Path, tmp_path: Path, spoil: Any, message: str
) -> None:
    write(tmp_path / "dump.jsonl", spoil(dumped(database)))
    before = database.read_bytes()
    for target, replace in ((tmp_path / "new" / "training.db", False), (database, True)):
        with pytest.raises(KarmaError, match=message):
            restore(tmp_path / "dump.jsonl", target, replace=replace)
    assert list((tmp_path / "new").iterdir()) == []
    assert database.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"training.db", "dump.jsonl", "import.jsonl", "new"}


def test_restore_takes_no_place_that_is_taken(database: Path, tmp_path: Path) -> None:
    write_dump(database, tmp_path / "dump.jsonl")
    import_rows(tmp_path / "other.db", [row("other")])
    before = dumped(tmp_path / "other.db")
    with pytest.raises(InputError, match=r"other\.db: is there already; restore to another path, or replace it"):
        restore(tmp_path / "dump.jsonl", tmp_path / "other.db")
    assert dumped(tmp_path / "other.db") == before
    assert restore(tmp_path / "dump.jsonl", tmp_path / "other.db", replace=True) == 2
    assert rows_of(whole(tmp_path / "other.db")) == rows_of(database)


def test_restore_does_not_take_the_log_of_another_database(database: Path, tmp_path: Path) -> None:
    write_dump(database, tmp_path / "dump.jsonl")
    (tmp_path / "new.db-wal").touch()
    with pytest.raises(
        InputError, match=r"new\.db-wal: the log of another database, which would spoil this one; remove"
    ):
        restore(tmp_path / "dump.jsonl", tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_restore_replaces_no_file_of_another_program_and_waits_for_no_writer_for_ever(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karma_electric.training_db.dump.BUSY_TIMEOUT_MS", 1)
    write_dump(database, tmp_path / "dump.jsonl")
    foreign = write_database(tmp_path / "foreign.db", "CREATE TABLE bookmarks (url TEXT)")
    before = foreign.read_bytes()
    with pytest.raises(InputError, match="an SQLite file of another program"):
        restore(tmp_path / "dump.jsonl", foreign, replace=True)
    with pytest.raises(InputError, match=r"dump\.jsonl: file is not a database; nothing was restored"):
        restore(tmp_path / "dump.jsonl", tmp_path / "dump.jsonl", replace=True)
    assert foreign.read_bytes() == before
    with open_to_write(database), pytest.raises(InputError, match="another program is writing; nothing was restored"):
        restore(tmp_path / "dump.jsonl", database, replace=True)
    assert len(stored(whole(database))) == 2


def test_a_dump_of_a_spoilt_database_is_refused_and_leaves_the_old_dump(database: Path, tmp_path: Path) -> None:
    write(tmp_path / "dump.jsonl", "the old one")
    write_database(database, "UPDATE examples SET category = 'other' WHERE id = 'b'")
    with pytest.raises(IntegrityError, match="example 'b' is not what its content_sha256 says"):
        write_dump(database, tmp_path / "dump.jsonl")
    assert (tmp_path / "dump.jsonl").read_text() == "the old one"


def test_git_shows_rows(tmp_path: Path) -> None:
    """The attribute of this repository and the line of configuration of the documentation, in another repository."""

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    git("init", "--quiet")
    (tmp_path / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    git("config", "diff.karma-db.textconv", f"{KARMA} db dump --db")
    first_schema(tmp_path / "training.db")
    git("add", ".gitattributes", "training.db")
    git("commit", "--quiet", "-m", "First")
    with open_to_write(tmp_path / "training.db") as connection:
        curation.archive(connection, "b", at=NOW)
    lines = [
        line for line in git("diff").splitlines() if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    ]
    assert len(lines) == 3, "the upgrade changes no row: one row is other than it was, and history has one more"
    assert lines[0].startswith('-{"examples":{"id":"b","status":"accepted"')
    assert lines[1].startswith('+{"examples":{"id":"b","status":"archived"')
    assert lines[2].startswith('+{"history":{"number":4,')
