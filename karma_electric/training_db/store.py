"""The training database: SQLite, write-ahead log, one writer at a time."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from karma_electric.conversation import Conversation, parse_conversation, parse_text
from karma_electric.errors import InputError, shown
from karma_electric.training_db.params import ExportParams
from karma_electric.training_db.schema import SCHEMA_VERSION, migrate, schema_version

BUSY_TIMEOUT_MS = 5000


@dataclass(frozen=True, slots=True)
class StoredExample:
    """A row of `examples`, as far as an export needs it."""

    id: str
    source: str
    category: str
    role: str
    conversation: Conversation


@contextlib.contextmanager
def open_to_read(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write and leaves no file beside the database.

    Raises InputError for a missing or foreign file, for one of another schema, and for one whose log or journal is not
    empty: what it says is not in the file yet.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; expected the training database (git restores it)")
    repair = f"`karma db import --db {path} /dev/null`"
    for suffix in ("-wal", "-journal"):
        log = path.with_name(path.name + suffix)
        if log.exists() and log.stat().st_size:
            raise InputError(
                f"{log}: holds changes that {path.name} lacks; end the program that writes; if none does, {repair}"
            )
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
        ) as connection:
            connection.row_factory = sqlite3.Row
            version = schema_version(connection, str(path))
            if version < SCHEMA_VERSION:
                raise InputError(f"{path}: of schema {version}, expected {SCHEMA_VERSION}; {repair} brings it there")
            yield connection
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: cannot be read as SQLite ({error}); restore it with git") from error


@contextlib.contextmanager
def open_to_write(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction: committed when the block ends well, else undone. The log is emptied after it."""
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
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: {error}; nothing was written") from error


def accepted_examples(connection: sqlite3.Connection, params: ExportParams, where: str) -> Iterator[StoredExample]:
    """The accepted rows that the parameters let through, in the order (category, id).

    Raises InputError, starting with `where`, for a row that another program has spoilt.
    """
    rows = connection.execute(
        "SELECT id, source, category, role, conversations, hermes_score, template_flag, tier FROM examples "
        "WHERE status = 'accepted' ORDER BY category, id"
    )
    for row in rows:
        if params.exclude_templates and row["template_flag"]:
            continue
        if params.min_score is not None and row["hermes_score"] is not None and row["hermes_score"] < params.min_score:
            continue
        if params.tiers is not None and row["tier"] not in params.tiers:
            continue
        row_where = f"{where}: example {shown(row['id'])}"
        texts = {name: parse_text(row[name], f"{row_where}: {name}") for name in ("id", "source", "category")}
        try:
            conversation = parse_conversation(json.loads(row["conversations"]), row_where)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{row_where}: conversations is not JSON; restore the row") from error
        yield StoredExample(role=row["role"], conversation=conversation, **texts)


def count_examples(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Category -> status -> number of examples, both in alphabetical order."""
    counts: dict[str, dict[str, int]] = {}
    query = "SELECT category, status, count(*) FROM examples GROUP BY category, status ORDER BY category, status"
    for category, status, count in connection.execute(query):
        counts.setdefault(category, {})[status] = count
    return counts
