"""The rows that are linted: accepted and pending ones of the database, and what patches add or replace."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from karma_electric.errors import InputError
from karma_electric.training_db.lint import Row
from karma_electric.training_db.patches import read_patches


def rows_of_database(connection: sqlite3.Connection, where: str) -> Iterator[Row]:
    """Accepted and pending examples in the order of category and id."""
    rows = connection.execute(
        "SELECT id, category, status, template_flag, conversations FROM examples "
        "WHERE status IN ('accepted', 'pending') ORDER BY category, id"
    )
    for row in rows:
        yield Row(
            id=row["id"],
            where=where,
            category=row["category"],
            is_pending=row["status"] == "pending",
            template_flag=row["template_flag"],
            conversations=json.loads(row["conversations"]),
        )


def rows_of_patches(folder: Path) -> Iterator[Row]:
    """What the patches of every version add or replace: `folder` holds one folder a version.

    Raises InputError for a missing folder and for a row that is no patch.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; expected a folder with a folder of patches for each version")
    for version in sorted(path for path in folder.iterdir() if path.is_dir()):
        for patch in read_patches(version):
            if patch.example is not None:
                yield Row(
                    id=patch.id,
                    where=patch.where,
                    category=patch.example.category,
                    is_pending=False,
                    template_flag=None,
                    conversations=[message.as_dict() for message in patch.example.conversation],
                )
