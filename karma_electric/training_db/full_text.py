"""The full-text index during a long import: fed at the end, in one statement."""

from __future__ import annotations

import sqlite3

from karma_electric.training_db.schema import INDEX_TRIGGER, INDEX_TRIGGER_NAME

_MANY_ROWS = 5000  # from here on the segments of the index are merged at the end, once


class DeferredIndex:
    """Takes the trigger that feeds the index away, within the transaction, and does its work for many rows at once.

    SQLite opens a savepoint for every statement that fires a trigger, and FTS5 writes a segment of its index at every
    savepoint: a row through the trigger costs three times as much. Call `catch_up` before a new row is changed or
    searched for, and `close` before the commit; a rollback brings the trigger back, too.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._first = self._last = self._last_row()
        connection.execute(f"DROP TRIGGER {INDEX_TRIGGER_NAME}")
        self._set_merging(automatic=False)

    def catch_up(self) -> None:
        """Index the rows that were added since the last call."""
        last = self._last_row()
        if last > self._last:
            self.connection.execute(
                "INSERT INTO examples_fts (rowid, id, conversations, category) "
                "SELECT rowid, id, conversations, category FROM examples_text WHERE rowid > ?",
                (self._last,),
            )
            self._last = last

    def close(self) -> None:
        """Index what is left, and put the trigger back."""
        self.catch_up()
        self.connection.execute(INDEX_TRIGGER)
        self._set_merging(automatic=True)
        if self._last - self._first >= _MANY_ROWS:
            self.connection.execute("INSERT INTO examples_fts (examples_fts) VALUES ('optimize')")

    def _last_row(self) -> int:
        return int(self.connection.execute("SELECT coalesce(max(rowid), 0) FROM examples").fetchone()[0])

    def _set_merging(self, *, automatic: bool) -> None:
        """FTS5's defaults; or, while rows come in, no merging of segments, and larger ones."""
        options = {"automerge": 4, "crisismerge": 16, "hashsize": 1 << 20}
        if not automatic:
            options = {"automerge": 0, "crisismerge": 1000, "hashsize": 16 << 20}
        for option, value in options.items():
            self.connection.execute("INSERT INTO examples_fts (examples_fts, rank) VALUES (?, ?)", (option, value))
