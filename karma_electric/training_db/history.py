"""History: what was done to every row, when, by which command, and how to get back."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError, IntegrityError, shown
from karma_electric.training_db.hashes import COLUMNS, content_sha256, row_sha256
from karma_electric.training_db.store import find_example
from karma_electric.training_db.text_patch import apply_hunks, reverse_hunks

Table = Literal["examples", "system_prompts"]

_SHORT_CHARACTERS = 200  # a text up to this length is kept whole


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of history. `before_sha256` is None when the row was made; `patch` leads from after to before."""

    number: int
    at: str
    command: str
    detail: str | None
    subject: Table
    id: str
    before_sha256: str | None
    after_sha256: str
    patch: dict[str, Any] | None

    @property
    def changed(self) -> list[str]:
        """The columns that the command changed; none when it made the row."""
        patch = self.patch or {}
        return sorted({*patch.get("set", {}), *patch.get("splice", {})})


class Ledger:
    """Writes rows of one transaction and, with each, its row of history: nothing else writes to these tables."""

    def __init__(self, connection: sqlite3.Connection, *, at: datetime.datetime, command: str) -> None:
        self.connection = connection
        self.at = at.isoformat(timespec="seconds")
        self.command = command
        self._number = int(connection.execute("SELECT coalesce(max(number), 0) FROM history").fetchone()[0])

    def add(self, table: Table, values: Mapping[str, Any], detail: str | None = None) -> None:
        """Add a row; the columns that `values` lacks must have been given their defaults by the caller."""
        row = _with_hash(table, values)
        names = COLUMNS[table]
        marks = ", ".join("?" * len(names))
        self.connection.execute(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",  # noqa: S608
            [row[name] for name in names],
        )
        self._append(table, row["id"], None, row_sha256(table, row), None, detail)

    def change(
        self, table: Table, before: Mapping[str, Any], values: Mapping[str, Any], detail: str | None = None
    ) -> bool:
        """Give the row `before` the columns in `values`. False, and no row of history, when it has them already."""
        earlier = {name: before[name] for name in COLUMNS[table]}
        later = _with_hash(table, {**earlier, **values})
        names = [name for name in COLUMNS[table] if later[name] != earlier[name]]
        if not names:
            return False
        assignments = ", ".join(f"{name} = ?" for name in names)
        self.connection.execute(
            f"UPDATE {table} SET {assignments} WHERE id = ?",  # noqa: S608
            [*(later[name] for name in names), earlier["id"]],
        )
        patch = canonical_json(reverse_patch(earlier, later))
        self._append(table, earlier["id"], row_sha256(table, earlier), row_sha256(table, later), patch, detail)
        return True

    def _append(
        self, table: Table, id_: str, before: str | None, after: str, patch: str | None, detail: str | None
    ) -> None:
        self._number += 1
        self.connection.execute(
            "INSERT INTO history "
            "(number, at, command, detail, subject, id, before_sha256, after_sha256, reverse_patch) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (self._number, self.at, self.command, detail, table, id_, before, after, patch),
        )


def reverse_patch(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """What makes `earlier` of `later`: `set` holds whole values, `splice` the hunks of long texts."""
    patch: dict[str, Any] = {}
    for name, value in earlier.items():
        if value == later[name] or name == "content_sha256":
            continue
        if isinstance(value, str) and isinstance(later[name], str) and len(value) > _SHORT_CHARACTERS:
            patch.setdefault("splice", {})[name] = reverse_hunks(value, later[name])
        else:
            patch.setdefault("set", {})[name] = value
    return patch


def apply_patch(table: Table, later: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """The row before: `reverse_patch(earlier, later)` applied to `later` gives `earlier`, hash of content included."""
    earlier = {**later, **patch.get("set", {})}
    for name, hunks in patch.get("splice", {}).items():
        earlier[name] = apply_hunks(later[name], hunks)
    return _with_hash(table, earlier)


def entries(connection: sqlite3.Connection, id_: str | None = None, *, limit: int = -1) -> Iterator[Entry]:
    """Rows of history, the latest first: of one id, or of all."""
    condition, values = ("", ()) if id_ is None else ("WHERE id = ? ", (id_,))
    query = f"SELECT * FROM history {condition}ORDER BY number DESC LIMIT ?"  # noqa: S608
    for row in connection.execute(query, (*values, limit)):
        fields = {name: row[name] for name in row.keys() if name != "reverse_patch"}  # noqa: SIM118
        patch = row["reverse_patch"]
        yield Entry(**fields, patch=None if patch is None else json.loads(patch))


def states(connection: sqlite3.Connection, table: Table, id_: str) -> Iterator[tuple[Entry, dict[str, Any]]]:
    """Each entry of a row, the latest first, with the whole row as that command left it.

    Raises IntegrityError where a row is not what history says: another program changed it, or a patch is spoilt.
    """
    found = connection.execute(f"SELECT * FROM {table} WHERE id = ?", (id_,)).fetchone()  # noqa: S608
    if found is None:
        return
    row = {name: found[name] for name in COLUMNS[table]}
    expected: str | None = row_sha256(table, _with_hash(table, row))
    for entry in entries(connection, id_):
        if entry.subject != table:
            continue
        if entry.after_sha256 != expected:
            raise IntegrityError(f"history {entry.number}: {shown(id_)} is not what `{entry.command}` left; {_RESTORE}")
        yield entry, row
        if entry.patch is None:
            return
        row = apply_patch(table, row, entry.patch)
        expected = row_sha256(table, row)
        if expected != entry.before_sha256:
            raise IntegrityError(f"history {entry.number}: its patch does not lead back to {shown(id_)}; {_RESTORE}")
    raise IntegrityError(f"history: does not say how {shown(id_)} came to be; {_RESTORE}")


def known_to_history(connection: sqlite3.Connection, id_: str) -> None:
    """Raise InputError, with the nearest ids, for an id of which history says nothing."""
    if connection.execute("SELECT 1 FROM history WHERE id = ? LIMIT 1", (id_,)).fetchone() is None:
        find_example(connection, id_)


def state_at(connection: sqlite3.Connection, id_: str, number: int) -> dict[str, Any]:
    """The whole example as the row of history `number` left it. Raises InputError when that is about another row."""
    for entry, row in states(connection, "examples", id_):
        if entry.number == number:
            return {**row, "conversations": json.loads(row["conversations"])}
    raise InputError(f"history {number} is not about {shown(id_)}; `karma db history {id_}` lists its numbers")


def check_database(connection: sqlite3.Connection, where: str) -> None:
    """Raise IntegrityError unless pages, constraints, full-text index, hashes and history agree.

    Every row must be what its last row of history says. The connection must be able to write (the index's own check is
    an INSERT), and is left without a change.
    """
    faults = [row[0] for row in connection.execute("PRAGMA integrity_check(3)")]
    if faults != ["ok"]:
        raise IntegrityError(f"{where}: {'; '.join(faults)}; restore it with git")
    try:
        connection.execute("INSERT INTO examples_fts (examples_fts, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        raise IntegrityError(f"{where}: its full-text index does not fit its rows ({error}); restore it") from error
    check_history(connection, where)


def check_history(connection: sqlite3.Connection, where: str) -> None:
    """Raise IntegrityError unless every row is what its history says.

    Compared are its hash of content, its last row of history, and that each row of history begins where the one before
    it ended. `states` applies the patches as well.
    """
    query = (
        "SELECT number FROM (SELECT number, before_sha256, "
        "lag(after_sha256) OVER (PARTITION BY subject, id ORDER BY number) AS earlier FROM history) "
        "WHERE before_sha256 IS NOT earlier LIMIT 1"
    )
    for (number,) in connection.execute(query):
        raise IntegrityError(f"{where}: history {number} does not follow from the row before it; {_RESTORE}")
    for table in ("examples", "system_prompts"):
        orphan = f"SELECT id FROM history WHERE subject = '{table}' AND id NOT IN (SELECT id FROM {table}) LIMIT 1"  # noqa: S608
        for (id_,) in connection.execute(orphan):
            raise IntegrityError(f"{where}: {table} {shown(id_)} is in history only; {_RESTORE}")
        query = (
            f"SELECT {table}.*, (SELECT after_sha256 FROM history WHERE subject = '{table}' AND id = {table}.id "  # noqa: S608
            f"ORDER BY number DESC LIMIT 1) AS last FROM {table}"
        )
        for row in connection.execute(query):
            values = {name: row[name] for name in COLUMNS[table]}
            if row_sha256(table, _with_hash(table, values)) != row["last"] or _with_hash(table, values) != values:
                raise IntegrityError(f"{where}: {table} {shown(row['id'])} is not what history says; {_RESTORE}")


_RESTORE = "another program wrote it: restore the database with git"


def _with_hash(table: Table, values: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(values)
    if table == "examples":
        row["content_sha256"] = content_sha256(row["id"], row["source"], row["category"], row["conversations"])
    return row
