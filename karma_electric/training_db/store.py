"""The training database: SQLite, write-ahead log, one writer at a time."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from karma_electric.conversation import Conversation, parse_conversation
from karma_electric.errors import InputError
from karma_electric.training_db.params import ExportParams
from karma_electric.training_db.schema import APPLICATION_ID, migrate

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

    Raises InputError for a missing or foreign file, and for one whose write-ahead log holds rows that the file lacks.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; expected the training database (git restores it)")
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        raise InputError(f"{log}: holds rows that {path.name} lacks; end the program that writes, or open it once more")
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        connection.row_factory = sqlite3.Row
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise InputError(f"{path}: not a training database of this project; import its rows into one")
        yield connection
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: cannot be read as SQLite ({error}); restore it with git") from error
    finally:
        connection.close()


@contextlib.contextmanager
def open_to_write(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection in one transaction: committed when the block ends well, else undone. The log is emptied after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_MS / 1000, isolation_level=None)
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA foreign_keys = ON")
        migrate(connection, str(path))
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as error:
        raise InputError(f"{path}: {error}; nothing was written") from error
    finally:
        connection.close()


def accepted_examples(connection: sqlite3.Connection, params: ExportParams) -> Iterator[StoredExample]:
    """The accepted rows that the parameters let through, in the order (category, id)."""
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
        where = f"example {row['id']}"
        conversation = parse_conversation(json.loads(row["conversations"]), where)
        yield StoredExample(row["id"], row["source"], row["category"], row["role"], conversation)


def count_examples(connection: sqlite3.Connection) -> dict[str, dict[str, int]]:
    """Category -> status -> number of examples, both in alphabetical order."""
    counts: dict[str, dict[str, int]] = {}
    query = "SELECT category, status, count(*) FROM examples GROUP BY category, status ORDER BY category, status"
    for category, status, count in connection.execute(query):
        counts.setdefault(category, {})[status] = count
    return counts
