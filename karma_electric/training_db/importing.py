"""Rows of a file, or of a whole database, into the training database: one transaction, all or none."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError, shown
from karma_electric.training_db.full_text import DeferredIndex
from karma_electric.training_db.hashes import COLUMNS
from karma_electric.training_db.history import Ledger
from karma_electric.training_db.import_rows import BadRow, ImportRow, read_import_lines
from karma_electric.training_db.old_database import ExportRecord, is_database, read_database
from karma_electric.training_db.schema import EVALUATOR_CATEGORY, EVALUATOR_ROLE
from karma_electric.training_db.store import open_to_write
from karma_electric.training_db.text_patch import shared_start
from karma_electric.wording import counted

OnConflict = Literal["keep", "replace", "rename"]
Item = ImportRow | BadRow | ExportRecord


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """How many rows were new; were there with the same content; were there with other content and kept, replaced or
    added under another name; could not be read."""

    new: int
    known: int
    kept: int = 0
    replaced: int = 0
    renamed: int = 0
    bad: int = 0


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a row gets that does not say its source or category."""

    source: str = "import"
    category: str = "uncategorised"


def import_examples(
    database: Path,
    file: Path,
    *,
    added_at: datetime.datetime,
    on_conflict: OnConflict | None = None,
    strict: bool = False,
    defaults: Defaults = Defaults(),
    report: Callable[[str], None] = lambda line: None,
) -> ImportCounts:
    """Add every good row of `file` (JSON lines, or a database of the old or this system) in one transaction.

    Only the columns that a row gives are compared with the row of the same id: equal ones make it known, others a
    conflict. `report` gets a line for each bad row and each conflict. Raises InputError, with nothing written, for a
    file that cannot be read, for conflicts without `on_conflict`, for bad rows when `strict`, and when all are bad;
    otherwise the caller finds in `bad` how many rows are missing.
    """
    if database.exists() and file.exists() and os.path.samefile(database, file):  # noqa: PTH121
        raise InputError(f"{file}: is the database itself; nothing was written")
    items: Iterator[Item] = read_database(file, report) if is_database(file) else read_import_lines(file)
    bad = 0
    first: list[Item] = []
    for item in items:  # a file without a good row makes no database
        if not isinstance(item, BadRow):
            first = [item]
            break
        report(item.reason)
        bad += 1
    if bad and not first:
        raise InputError(f"{file}: {bad} bad rows and no good one; nothing was written")
    with open_to_write(database) as connection:
        run = _Import(connection, added_at, on_conflict, defaults, report)
        run.count["bad"] = bad
        for item in itertools.chain(first, items):
            run.take(item)
        run.finish(file, strict=strict)
    return ImportCounts(**{name: run.count[name] for name in ImportCounts.__slots__})


class _Import:
    """One import, inside its transaction."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        at: datetime.datetime,
        on_conflict: OnConflict | None,
        defaults: Defaults,
        report: Callable[[str], None],
    ) -> None:
        self.connection = connection
        self.ledger = Ledger(connection, at=at, command="import")
        self.on_conflict = on_conflict
        self.defaults = defaults
        self.report = report
        self.count: Counter[str] = Counter()
        self.index = DeferredIndex(connection)

    def take(self, item: Item) -> None:
        """Count, compare or store one item."""
        if isinstance(item, BadRow):
            self.report(item.reason)
            self.count["bad"] += 1
        elif isinstance(item, ExportRecord):
            self._take_record(item)
        else:
            self._take_row(item)

    def finish(self, file: Path, *, strict: bool) -> None:
        """Raise InputError, which undoes the transaction, for conflicts without a choice and, if strict, bad rows."""
        if self.count["refused"]:
            raise InputError(
                f"{file}: other content is there for {counted(self.count['refused'], 'row')}; nothing was written; "
                "choose with --on-conflict keep, replace or rename"
            )
        if strict and self.count["bad"]:
            raise InputError(f"{file}: {counted(self.count['bad'], 'bad row')}; nothing was written")
        self.index.close()

    def _take_row(self, row: ImportRow) -> None:
        found = self._find(row, row.values["id"])
        if found is None:
            self._add(row, row.values["id"], "new")
        elif not _differing(found, row.values):
            self.count["known"] += 1
        else:
            self._resolve(row, found)

    def _resolve(self, row: ImportRow, found: dict[str, Any]) -> None:
        differing = _differing(found, row.values)
        text = "; ".join(_difference(name, found[name], row.values[name]) for name in differing)
        conflict = f"{row.where}: {shown(row.values['id'])} is there with other content: {text}"
        if self.on_conflict is None:
            self.count["refused"] += 1
            self.report(conflict)
        elif self.on_conflict == "keep":
            self.count["kept"] += 1
            self.report(f"{conflict}; kept what is there")
        elif self.on_conflict == "replace":
            self.index.catch_up()
            self.ledger.change(row.table, found, row.values, row.detail)
            self.count["replaced"] += 1
            self.report(f"{conflict}; replaced")
        else:
            self._rename(row, conflict)

    def _rename(self, row: ImportRow, conflict: str) -> None:
        content = {name: value for name, value in row.values.items() if name not in ("id", "added_at")}
        digest = hashlib.sha256(canonical_json(content).encode("utf-8")).hexdigest()
        id_ = f"{row.values['id']}-{digest[:12]}"
        found = self._find(row, id_)
        if found is None:
            self._add(row, id_, "renamed")
            self.report(f"{conflict}; added as {shown(id_)}")
        elif _differing(found, {**row.values, "id": id_}):
            raise InputError(f"{row.where}: {shown(id_)}, the other name, is there with other content, too")
        else:
            self.count["known"] += 1

    def _add(self, row: ImportRow, id_: str, counted: str) -> None:
        values = {**dict.fromkeys(COLUMNS[row.table]), **row.values, "id": id_}
        if row.table == "examples":
            category = values["category"] or self.defaults.category
            role = EVALUATOR_ROLE if category == EVALUATOR_CATEGORY else "conversational"
            values |= {
                "status": values["status"] or "pending",
                "source": values["source"] or self.defaults.source,
                "category": category,
                "role": values["role"] or role,
                "added_at": values["added_at"] or self.ledger.at,
            }
        self.ledger.add(row.table, values, row.detail)
        self.count[counted] += 1

    def _find(self, row: ImportRow, id_: str) -> dict[str, Any] | None:
        found = self.connection.execute(
            f"SELECT * FROM {row.table} WHERE id = ?",  # noqa: S608
            (id_,),
        ).fetchone()
        return None if found is None else dict(found)

    def _take_record(self, record: ExportRecord) -> None:
        """A row of an old table `exports`; one that is there is not stored twice."""
        values = (record.text,)
        if not self.connection.execute("SELECT 1 FROM exports WHERE record = ?", values).fetchone():
            self.connection.execute("INSERT INTO exports (record) VALUES (?)", values)


def _differing(found: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """The columns that `values` gives and that are otherwise in the database. When a row was added is no content."""
    return [name for name, value in values.items() if found[name] != value and name != "added_at"]


def _difference(name: str, there: object, here: object) -> str:
    """Both values, long texts from just before the place where they part."""
    if isinstance(there, str) and isinstance(here, str):
        start = max(0, shared_start(there, here) - 10)
        there, here = there[start : start + 80], here[start : start + 80]
    return f"{name} there {shown(there)}, here {shown(here)}"
