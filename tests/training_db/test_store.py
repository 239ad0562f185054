"""Opening the database, to read and to write, and what keeps it from being opened."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from karma_electric.conversation import parse_example
from karma_electric.errors import InputError, IntegrityError
from karma_electric.training_db.hashes import content_sha256
from karma_electric.training_db.schema import APPLICATION_ID, SCHEMA_VERSION
from karma_electric.training_db.selection import Selection
from karma_electric.training_db.store import (
    accepted_examples,
    count_examples,
    find_example,
    open_to_read,
    open_to_write,
    upgrade,
)
from tests.cli.running import ROOT
from tests.training_db.rows import (
    INSERT,
    import_rows,
    read,
    row,
    stored,
    whole,
    write_database,
    write_rows,
)


def foreign(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE bookmarks (url TEXT); INSERT INTO bookmarks VALUES ('x');")
    return path


def write(path: Path) -> None:
    with open_to_write(path) as connection:
        connection.execute("UPDATE examples SET notes = 'written'")


def test_reading_leaves_nothing_beside_the_file(database: Path) -> None:
    before = database.read_bytes()
    assert read(database) == 3
    assert [path.name for path in database.parent.iterdir()] == ["training.db"]
    assert database.read_bytes() == before


def test_reading_works_in_a_folder_that_cannot_be_written(database: Path) -> None:
    database.chmod(0o444)
    database.parent.chmod(0o555)
    try:
        assert read(database) == 3
    finally:
        database.parent.chmod(0o755)


def test_a_reader_cannot_write(database: Path) -> None:
    with pytest.raises(InputError, match="readonly"), open_to_read(database) as connection:
        connection.execute("DELETE FROM examples")
    assert read(database) == 3


def test_writing_leaves_only_the_database(database: Path) -> None:
    write(database)
    assert [path.name for path in database.parent.iterdir()] == ["training.db"]


def test_a_log_that_holds_rows_is_refused_until_it_is_folded_in(database: Path) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as writer:
        writer.execute("UPDATE examples SET notes = 'only in the log'")
        for path in database.parent.glob("training.db*"):
            shutil.copyfile(path, path.with_name(path.name.replace("training", "crashed")))
        with pytest.raises(
            InputError, match=r"training\.db-wal: holds changes that training\.db lacks; end the program"
        ):
            read(database)
    assert read(database) == 3  # the last writer to leave empties the log
    crashed = database.with_name("crashed.db")
    with pytest.raises(InputError, match=r"crashed\.db-wal: .*if none does, `karma db upgrade --db .*crashed\.db`"):
        read(crashed)
    assert upgrade(crashed) == SCHEMA_VERSION
    with open_to_read(crashed) as connection:
        assert {found["notes"] for found in connection.execute("SELECT notes FROM examples")} == {"only in the log"}


def test_an_empty_log_is_none(database: Path) -> None:
    database.with_name("training.db-wal").touch()
    assert read(database) == 3


def test_a_journal_is_refused(database: Path) -> None:
    database.with_name("training.db-journal").write_bytes(b"x")
    with pytest.raises(InputError, match=r"training\.db-journal: holds changes"):
        read(database)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.db", tmp_path):
        with pytest.raises(InputError, match="missing; expected the training database"):
            read(path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="unable to open database file; nothing was written"):
        write(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="its folder cannot be made"):
        write(tmp_path / "file" / "training.db")


@pytest.mark.parametrize("use", [read, write])
def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path, use: object) -> None:
    file = tmp_path / "training.db"
    file.write_text("# not a database\n" * 100)
    with pytest.raises(InputError, match=r"training\.db: .*file is not a database"):
        use(file)  # type: ignore[operator]
    assert file.read_text() == "# not a database\n" * 100


@pytest.mark.parametrize("use", [read, write])
def test_a_database_of_another_program_is_refused_and_not_touched(tmp_path: Path, use: object) -> None:
    for application_id in (0, 12345):
        file = foreign(tmp_path / f"{application_id}.db")
        with closing(sqlite3.connect(file)) as connection:
            connection.execute(f"PRAGMA application_id = {application_id}")
        before = file.read_bytes()
        with pytest.raises(InputError, match="an SQLite file of another program"):
            use(file)  # type: ignore[operator]
        assert file.read_bytes() == before


@pytest.mark.parametrize("use", [read, write])
def test_a_database_of_a_newer_version_is_refused_and_not_touched(database: Path, use: object) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = database.read_bytes()
    with pytest.raises(InputError, match=rf"made by a newer version \(schema {SCHEMA_VERSION + 1}"):
        use(database)  # type: ignore[operator]
    assert database.read_bytes() == before


def read_all(path: Path) -> None:
    with open_to_read(path) as connection:
        connection.execute("SELECT * FROM examples").fetchall()
        connection.execute("SELECT * FROM examples_fts WHERE examples_fts MATCH 'hello'").fetchall()


def test_a_torn_file_is_named(database: Path) -> None:
    data = database.read_bytes()
    database.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"training\.db: cannot be read as SQLite .*restore it with git"):
        read_all(database)


def change_and_fail(path: Path) -> None:
    with open_to_write(path) as connection:
        connection.execute("UPDATE examples SET notes = 'half'")
        raise RuntimeError


def test_a_failed_block_writes_nothing(database: Path) -> None:
    before = database.read_bytes()
    with pytest.raises(RuntimeError):
        change_and_fail(database)
    assert database.read_bytes() == before


def test_a_second_writer_waits_and_is_told(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma_electric.training_db.store.BUSY_TIMEOUT_MS", 1)
    with (
        open_to_write(database),
        pytest.raises(InputError, match=r"training\.db: another program is writing; nothing was written; try again"),
    ):
        write(database)


def test_content_that_is_not_what_its_hash_says_is_refused(database: Path) -> None:
    write_database(database, "UPDATE examples SET source = 'elsewhere' WHERE id = 'a'")
    params = Selection(exclude_templates=True)
    with open_to_read(database) as connection:
        for read_it in (
            lambda: find_example(connection, "a"),
            lambda: list(accepted_examples(connection, params, "file.db")),
        ):
            with pytest.raises(IntegrityError, match="example 'a' is not what its content_sha256 says"):
                read_it()


def test_the_hash_of_content_is_that_of_the_export_row(database: Path) -> None:
    for found in stored(database):
        example = parse_example(
            {
                **{name: found[name] for name in ("id", "source", "category")},
                "conversations": json.loads(found["conversations"]),
            },
            "here",
        )
        assert found["content_sha256"] == example.sha256()


def test_an_unknown_id_is_told_with_the_nearest(database: Path) -> None:
    import_rows(database, [row(f"crisis-response-{number:03}") for number in range(20)])
    with open_to_read(database) as connection:
        with pytest.raises(InputError) as caught:
            find_example(connection, "crisis-responce-011")
        assert str(caught.value).startswith(
            "there is no example 'crisis-responce-011'; the nearest are crisis-response-011"
        )
        with pytest.raises(InputError, match=r"^there is no example 'qqq'; none is like it"):
            find_example(connection, "qqq")


def test_a_file_that_is_written_to_while_it_is_read_is_told(database: Path) -> None:
    with (
        pytest.raises(InputError, match=r"training\.db: was written to while it was read; run the command again"),
        open_to_read(database),
    ):
        write(database)
    with (
        pytest.raises(InputError, match="was written to while it was read"),
        closing(sqlite3.connect(database, isolation_level=None)) as writer,
        open_to_read(database),
    ):
        writer.execute("UPDATE examples SET notes = 'only in the log'")


def test_two_writers_that_make_one_database_both_succeed(tmp_path: Path) -> None:
    """Both find an empty file; the second must not run the migrations again."""
    path = tmp_path / "training.db"
    code = (
        "import sys, pathlib, datetime\nfrom karma_electric.training_db.importing import import_examples\n"
        "sys.stdin.readline()\n"
        "import_examples(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), added_at=datetime.datetime.now())"
    )
    files = [
        write_rows(tmp_path / f"{name}.jsonl", [row(f"{name}-{number}") for number in range(50)]) for name in "abcd"
    ]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, path, file], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for file in files
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.wait() for writer in writers] == [0] * 4
    # One that ends while others have the file open cannot empty the log, and says so.
    kept = f"{path}: written; a program that reads keeps part of it in training.db-wal; end it\n"
    assert {writer.communicate()[1] for writer in writers} <= {"", kept}
    assert len(stored(whole(path))) == 200
    assert [entry["number"] for entry in stored(path, "history")] == list(range(1, 201))


SPOILT = {
    "not a list": ('{"a": 1}', "conversations is an object"),
    "no messages": ("[]", "conversations is an empty list"),
    "the user last": ('[{"role":"user","content":"x"}]', "the last turn must be the assistant's"),
}


@pytest.mark.parametrize(("text", "message"), SPOILT.values(), ids=SPOILT.keys())
def test_a_row_that_another_program_spoilt_is_named(database: Path, text: str, message: str) -> None:
    params = Selection(exclude_templates=True)
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(INSERT, ("spoilt", text, "accepted", content_sha256("spoilt", "s", "c", text)))
    with (
        open_to_read(database) as connection,
        pytest.raises(InputError, match=r"file\.db: example 'spoilt': ") as caught,
    ):
        list(accepted_examples(connection, params, "file.db"))
    assert message in str(caught.value)


def test_counts_are_by_category_and_status(database: Path) -> None:
    with open_to_read(database) as connection:
        assert count_examples(connection) == {"greeting": {"accepted": 1, "pending": 1}, "other": {"accepted": 1}}


def test_the_shipped_database_is_whole() -> None:
    with open_to_read(ROOT / "data" / "training.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("PRAGMA application_id").fetchone()[0] == APPLICATION_ID
        counts = count_examples(connection)
        params = Selection()
        assert len(list(accepted_examples(connection, params, "training.db"))) >= 120
    assert sum(by_status.get("accepted", 0) for by_status in counts.values()) >= 120
    assert len(counts) >= 6
