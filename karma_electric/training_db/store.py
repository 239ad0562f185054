"""The training database: SQLite, write-ahead log, one writer at a time."""

from __future__ import annotations

import contextlib
import heapq
import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.conversation import Conversation, parse_conversation, parse_text
from karma_electric.errors import InputError, KarmaError, shown
from karma_electric.training_db.hashes import check_content
from karma_electric.training_db.schema import SCHEMA_VERSION, migrate, schema_version
from karma_electric.training_db.selection import Selection

BUSY_TIMEOUT_MS = 5000
MAX_UPGRADE_IN_MEMORY_BYTES = 64 * 1024 * 1024
_CACHE_KIBIBYTES = 32 * 1024

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StoredExample:
    """A row of `examples`, as far as an export needs it."""

    id: str
    source: str
    category: str
    role: str
    reasoning: str | None
    conversation: Conversation


@contextlib.contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write and leaves no file beside the database.

    A database of an older schema is upgraded in memory; the file stays as it is. Raises InputError as `open_immutable`
    does, and for a database of another program or of a newer schema.
    """
    with open_immutable(path) as connection, contextlib.closing(_upgraded(connection, path)) as current:
        current.row_factory = sqlite3.Row
        yield current


@contextlib.contextmanager
def open_immutable(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to any SQLite file that takes no lock and writes nothing.

    Raises InputError for a missing file, for one that is no database, for one whose log or journal is not empty (what
    it says is not in the file yet), and at the end of the block for one that was written to meanwhile: without locks,
    what was read may be torn.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; expected the training database (git restores it)")
    before = _state(path)
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            yield connection
    except sqlite3.DatabaseError as error:
        _check_unchanged(path, before)
        raise InputError(f"{path}: cannot be read as SQLite ({error}); restore it with git") from error
    except KarmaError:
        _check_unchanged(path, before)
        raise
    _check_unchanged(path, before)


@contextlib.contextmanager
def open_to_write(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction: committed when the block ends well, else undone. The log is emptied after it.

    A missing file is made, an older schema upgraded. A second writer waits for BUSY_TIMEOUT_MS, then is told.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: its folder cannot be made ({error}); correct the path") from error
    try:
        with contextlib.closing(
            sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
        ) as connection:
            connection.row_factory = sqlite3.Row
            migrate(connection, str(path))  # first: it refuses another program's file, which stays as it is
            _keep_a_log(connection)
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = OFF")  # else pages of merged index segments are zeroed first
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIBIBYTES}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            _empty_log(connection, path)
    except sqlite3.OperationalError as error:
        if not _is_busy(error):
            raise InputError(f"{path}: {error}; nothing was written") from error
        raise InputError(f"{path}: another program is writing; nothing was written; try again after it") from error
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: {error}; nothing was written") from error


def upgrade(path: Path) -> int:
    """Bring the file to this schema and fold its log in. Gives the schema that it had."""
    if not path.is_file():
        raise InputError(f"{path}: missing; expected a training database")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000)) as connection:
            version = schema_version(connection, str(path))
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: cannot be read as SQLite ({error}); restore it with git") from error
    with open_to_write(path):
        pass
    return version


def find_example(connection: sqlite3.Connection, id_: str) -> dict[str, Any]:
    """Every column of one example.

    Raises InputError, with the nearest ids, for an unknown one, and IntegrityError for spoilt content.
    """
    row = connection.execute("SELECT * FROM examples WHERE id = ?", (id_,)).fetchone()
    if row is None:
        near = nearest_ids(connection, id_)
        hint = (
            f"the nearest are {', '.join(near)}" if near else "none is like it; `karma db search` finds one by its text"
        )
        raise InputError(f"there is no example {shown(id_)}; {hint}")
    check_content(row, "the database")
    return dict(row)


def nearest_ids(connection: sqlite3.Connection, id_: str, limit: int = 3) -> list[str]:
    """The ids that share most pairs of letters with `id_`, best first."""
    wanted = _pairs(id_)

    def scored() -> Iterator[tuple[float, str]]:
        for (other,) in connection.execute("SELECT id FROM examples"):
            pairs = _pairs(other)
            score = 2 * len(wanted & pairs) / (len(wanted) + len(pairs))
            if score >= 0.4:
                yield -score, other

    return [other for _, other in heapq.nsmallest(limit, scored())]


def accepted_examples(connection: sqlite3.Connection, selection: Selection, where: str) -> Iterator[StoredExample]:
    """The accepted rows that the selection lets through, in the order (category, id).

    Raises InputError, starting with `where`, for a row that another program has spoilt, and IntegrityError for one
    whose content is not what its hash says.
    """
    condition, values = selection.in_sql()
    rows = connection.execute(
        "SELECT id, source, category, role, conversations, content_sha256, reasoning "  # noqa: S608 - names of ours
        f"FROM examples WHERE {condition} ORDER BY category, id",
        values,
    )
    for row in rows:
        row_where = f"{where}: example {shown(row['id'])}"
        check_content(row, where)
        texts = {name: parse_text(row[name], f"{row_where}: {name}") for name in ("id", "source", "category")}
        try:
            conversation = parse_conversation(json.loads(row["conversations"]), row_where)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{row_where}: conversations is not JSON; restore the row") from error
        yield StoredExample(role=row["role"], reasoning=row["reasoning"], conversation=conversation, **texts)


def count_examples(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Category -> status -> number of examples, both in alphabetical order."""
    counts: dict[str, dict[str, int]] = {}
    query = "SELECT category, status, count(*) FROM examples GROUP BY category, status ORDER BY category, status"
    for category, status, count in connection.execute(query):
        counts.setdefault(category, {})[status] = count
    return counts


def _upgraded(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """The connection itself, or one to an upgraded copy in memory."""
    version = schema_version(connection, str(path))
    if version == SCHEMA_VERSION:
        return connection
    command = f"`karma db upgrade --db {path}`"
    if version == 0 or path.stat().st_size > MAX_UPGRADE_IN_MEMORY_BYTES:
        raise InputError(f"{path}: of schema {version}, expected {SCHEMA_VERSION}; {command} brings it there")
    copy = sqlite3.connect(":memory:", isolation_level=None)
    connection.backup(copy)
    migrate(copy, str(path))
    copy.execute("PRAGMA query_only = ON")
    return copy


def _state(path: Path) -> tuple[int, int, int]:
    """What changes when the file is written to. An InputError when a log or journal holds more than the file."""
    for suffix in ("-wal", "-journal"):
        log = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            if log.stat().st_size:
                raise InputError(
                    f"{log}: holds changes that {path.name} lacks; end the program that writes; if none does, "
                    f"`karma db upgrade --db {path}`"
                )
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_unchanged(path: Path, before: tuple[int, int, int]) -> None:
    try:
        unchanged = _state(path) == before
    except (FileNotFoundError, InputError):
        unchanged = False
    if not unchanged:
        raise InputError(f"{path}: was written to while it was read; run the command again")


def _keep_a_log(connection: sqlite3.Connection) -> None:
    """Switch to the write-ahead log; this statement does not wait by itself while another program reads."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)
        else:
            return


def _is_busy(error: sqlite3.OperationalError) -> bool:
    # the lowest byte is the code; the others tell where
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _empty_log(connection: sqlite3.Connection, path: Path) -> None:
    if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        _log.warning("%s: written; a program that reads keeps part of it in %s-wal; end it", path, path.name)


def _pairs(text: str) -> set[str]:
    folded = f" {text.casefold()} "
    return {folded[index : index + 2] for index in range(len(folded) - 1)}
