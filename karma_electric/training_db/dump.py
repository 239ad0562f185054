"""The whole database as text, one JSON line a row, and back: `restore(dump(db))` has every row of every table."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json, read_json_lines
from karma_electric.errors import InputError, IntegrityError, shown
from karma_electric.integrity import atomic_file
from karma_electric.training_db.full_text import DeferredIndex
from karma_electric.training_db.hashes import EXAMPLE_COLUMNS, PROMPT_COLUMNS, check_content
from karma_electric.training_db.history import check_database
from karma_electric.training_db.schema import SCHEMA_VERSION, migrate, schema_version
from karma_electric.training_db.store import BUSY_TIMEOUT_MS, open_to_read

_HISTORY_COLUMNS = (
    "number", "at", "command", "detail", "subject", "id", "before_sha256", "after_sha256", "reverse_patch",
)  # fmt: skip
# table -> columns, in the order in which they stand in a line, and the column that orders the rows
_TABLES: dict[str, tuple[tuple[str, ...], str]] = {
    "system_prompts": (PROMPT_COLUMNS, "id"),
    "examples": (EXAMPLE_COLUMNS, "id"),
    "exports": (("number", "record"), "number"),
    "history": (_HISTORY_COLUMNS, "number"),
}
_SQLITE_DONE = 101
_JSON_COLUMNS = ("conversations", "record", "reverse_patch")


def dump_lines(database: Path) -> Iterator[str]:
    """The lines of a dump, each with its line break: the schema's number, then every row of every table.

    The order is that of the tables above and, in each, of the id or number; so equal databases give equal bytes, and a
    changed row is one changed line. A database of an older schema is dumped as it would be after its upgrade. Raises
    InputError as `open_to_read` does, and IntegrityError for a row whose content is not what its hash says.
    """
    encode = json.encoder.encode_basestring
    with open_to_read(database) as connection:
        yield f'{{"schema":{SCHEMA_VERSION}}}\n'
        for table, (columns, order) in _TABLES.items():
            for row in connection.execute(f"SELECT * FROM {table} ORDER BY {order}"):  # noqa: S608
                if table == "examples":
                    check_content(row, str(database))
                fields = ",".join(f'"{name}":{_dump_value(name, row[name], encode)}' for name in columns)
                yield f'{{"{table}":{{{fields}}}}}\n'


def write_dump(database: Path, output: Path) -> None:
    """Write the dump to a file, whole or not at all. Raises as `dump_lines` does."""
    with atomic_file(output) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(dump_lines(database))


def restore(dump: Path, database: Path, *, replace: bool = False) -> int:
    """Make a database of a dump and check all of it; gives the number of examples.

    It is made beside its place and takes it whole, or not at all. With `replace`, what is in `database` now is replaced
    in one transaction, after other writers. Raises InputError, with file and line, for what is no dump, for a database
    that is there already, and IntegrityError for rows that are not what their hashes or the history say.
    """
    if database.exists() and not replace:
        raise InputError(f"{database}: is there already; restore to another path, or replace it with --replace")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{database.name}.", suffix=".partial", dir=database.parent)
    except OSError as error:
        raise InputError(f"{database}: its folder cannot be written to ({error}); correct the path") from error
    os.close(handle)
    temporary = Path(name)
    try:
        count = _build(dump, temporary)
        if database.exists():
            _overwrite(temporary, database)
        else:
            _put_in_place(temporary, database)
    except sqlite3.DatabaseError as error:
        raise InputError(f"{database}: {error}; nothing was restored") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _build(dump: Path, database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = OFF")  # a half-made file is thrown away
        connection.execute("PRAGMA synchronous = OFF")
        migrate(connection, str(database))
        connection.execute("BEGIN")
        index = DeferredIndex(connection)
        lines = read_json_lines(dump, max_line_bytes=64 * 1024 * 1024)
        _check_header(dump, next(lines, None))
        for number, line in lines:
            _insert(connection, line, f"{dump}:{number}")
        index.close()
        connection.execute("COMMIT")
        check_database(connection, str(dump))
        connection.execute("PRAGMA journal_mode = WAL")
        return int(connection.execute("SELECT count(*) FROM examples").fetchone()[0])


def _check_header(dump: Path, first: tuple[int, dict[str, Any]] | None) -> None:
    expected = {"schema": SCHEMA_VERSION}
    if first is None or first[1] != expected:
        found = "an empty file" if first is None else shown(first[1])
        raise InputError(f"{dump}:1: found {found}, expected {canonical_json(expected)}; use a file of `karma db dump`")


def _insert(connection: sqlite3.Connection, line: dict[str, Any], where: str) -> None:
    table, row = next(iter(line.items()), ("", None))
    if len(line) != 1 or table not in _TABLES or not isinstance(row, dict) or set(row) != set(_TABLES[table][0]):
        raise InputError(
            f"{where}: not a row of {', '.join(_TABLES)} with all its columns; use a file of karma db dump"
        )
    columns = _TABLES[table][0]
    marks = ", ".join("?" * len(columns))
    try:
        connection.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})",  # noqa: S608
            [
                canonical_json(row[name]) if name in _JSON_COLUMNS and row[name] is not None else row[name]
                for name in columns
            ],
        )
    except (sqlite3.IntegrityError, sqlite3.InterfaceError, sqlite3.ProgrammingError, OverflowError) as error:
        raise InputError(f"{where}: {table} does not take this row ({error})") from error
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: a lone surrogate; a dump is valid Unicode") from error


def _put_in_place(temporary: Path, database: Path) -> None:
    """Give the finished file its name; a log that lies there from another database would be taken for this one's."""
    for suffix in ("-wal", "-journal"):
        log = database.with_name(database.name + suffix)
        if log.exists():
            raise InputError(f"{log}: the log of another database, which would spoil this one; remove it")
    temporary.chmod(0o644)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    try:
        os.link(temporary, database)  # unlike a rename, never over a database that was made meanwhile
    except FileExistsError as error:
        raise InputError(f"{database}: was made meanwhile; nothing was restored") from error


def _overwrite(temporary: Path, database: Path) -> None:
    """Copy every page over, in one transaction of the database, so that its other users are safe."""

    def refuse_to_wait(status: int, _remaining: int, _total: int) -> None:
        if status != _SQLITE_DONE:  # sqlite3 would try again for ever
            raise InputError(f"{database}: another program is writing; nothing was restored; try again after it")

    with (
        contextlib.closing(sqlite3.connect(temporary)) as source,
        contextlib.closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT_MS / 1000)) as target,
    ):
        schema_version(target, str(database))  # refuses another program's file
        target.execute("PRAGMA journal_mode = WAL")
        source.backup(target, progress=refuse_to_wait)
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _dump_value(name: str, value: Any, encode: Any) -> str:
    if value is None:
        return "null"
    if name in _JSON_COLUMNS:
        if "\n" in value:
            raise IntegrityError(f"the column {name} holds JSON that is not in its canonical spelling: {shown(value)}")
        return str(value)
    return str(value) if isinstance(value, int) else str(encode(value))
