"""Rows of the training database for people: one, those of a category, those to review, those with a template flag."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from karma_electric.errors import InputError, shown
from karma_electric.training_db.schema import STATUSES

ReviewMode = Literal["random", "category", "recent", "tier"]
NO_TIER = "none"


@dataclass(frozen=True, slots=True)
class Summary:
    """A row in one line: `begins` is the beginning of its first user turn."""

    id: str
    status: str
    tier: str | None
    language: str
    hermes_score: int | None
    begins: str


def as_record(row: sqlite3.Row | dict[str, Any]) -> dict[str, Any]:
    """A row of `examples` with every column, its conversation as a list."""
    record = dict(row)
    record["conversations"] = json.loads(record.pop("conversations"))
    return record


def rows_of_category(
    connection: sqlite3.Connection, category: str, *, status: str | None = None, limit: int | None = None
) -> list[Summary]:
    """The rows of a category in the order of their ids. Raises InputError for one that holds no row at all."""
    check_value(connection, "category", category)
    condition, arguments = ("AND status = ?", (status,)) if status else ("", ())
    rows = connection.execute(
        "SELECT id, status, tier, language, hermes_score, conversations FROM examples "  # noqa: S608
        f"WHERE category = ? {condition} ORDER BY id LIMIT ?",
        (category, *arguments, -1 if limit is None else limit),
    )
    return [
        Summary(
            id=row["id"],
            status=row["status"],
            tier=row["tier"],
            language=row["language"],
            hermes_score=row["hermes_score"],
            begins=_beginning(row["conversations"]),
        )
        for row in rows
    ]


def rows_with_template_flag(connection: sqlite3.Connection) -> dict[str, list[str]]:
    """Template flag -> the ids of its rows, both in alphabetical order."""
    found: dict[str, list[str]] = {}
    query = "SELECT template_flag, id FROM examples WHERE coalesce(template_flag, '') <> '' ORDER BY template_flag, id"
    for flag, id_ in connection.execute(query):
        found.setdefault(flag, []).append(id_)
    return found


def texts_of_rows(connection: sqlite3.Connection, statuses: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(id, what user and assistant say) of the rows of these statuses, ordered by category and id."""
    query = (
        "SELECT id, conversations FROM examples "  # noqa: S608 - the values are bound
        f"WHERE status IN ({', '.join('?' * len(statuses))}) ORDER BY category, id"
    )
    for id_, conversations in connection.execute(query, tuple(statuses)):
        turns = json.loads(conversations)
        yield id_, "\n".join(turn["content"] for turn in turns if turn["role"] != "system")


def rows_to_review(
    connection: sqlite3.Connection,
    mode: ReviewMode,
    *,
    value: str | None = None,
    statuses: Sequence[str] = (),
    limit: int = 5,
    seed: int = 0,
) -> Iterator[dict[str, Any]]:
    """Rows to read, as records.

    `random` draws with `seed`: the same rows for the same seed and database. `recent` takes the newest first.
    `category` and `tier` take the rows of `value` by id (the tier `none`: rows without one). InputError for a value
    that no row has, or a missing one.
    """
    condition, arguments = "true", list[str]()
    if mode in ("category", "tier"):
        if value is None:
            raise InputError(f"review {mode}: which {mode}? name it with --{mode}")
        if (mode, value) == ("tier", NO_TIER):
            condition = "tier IS NULL"
        else:
            check_value(connection, mode, value)
            condition, arguments = f"{mode} = ?", [value]
    if statuses:
        condition += f" AND status IN ({', '.join('?' * len(statuses))})"
        arguments += statuses
    if mode == "random":
        ids = _drawn(connection, condition, arguments, limit, seed)
    else:
        order = "added_at DESC, id" if mode == "recent" else "id"
        query = f"SELECT id FROM examples WHERE {condition} ORDER BY {order} LIMIT ?"  # noqa: S608
        ids = [row[0] for row in connection.execute(query, (*arguments, limit))]
    for id_ in ids:
        yield as_record(connection.execute("SELECT * FROM examples WHERE id = ?", (id_,)).fetchone())


def check_value(connection: sqlite3.Connection, column: Literal["category", "tier", "role"], value: str) -> None:
    """Raise InputError, naming what there is, when no row has `value`."""
    query = f"SELECT 1 FROM examples WHERE {column} = ? LIMIT 1"  # noqa: S608
    if connection.execute(query, (value,)).fetchone() is None:
        import difflib

        known = [row[0] for row in connection.execute(f"SELECT DISTINCT {column} FROM examples ORDER BY 1") if row[0]]  # noqa: S608
        near = difflib.get_close_matches(value, known, n=3, cutoff=0.4) or known[:10]
        there_are = f"the nearest are {', '.join(near)}" if near else "no row has one"
        raise InputError(f"no example has the {column} {shown(value)}; {there_are}")


def check_status(status: str) -> str:
    """`status`, or an InputError that names those there are."""
    if status not in STATUSES:
        raise InputError(f"status is {shown(status)}, expected one of {', '.join(STATUSES)}")
    return status


def _drawn(connection: sqlite3.Connection, condition: str, arguments: list[str], limit: int, seed: int) -> list[str]:
    count = connection.execute(f"SELECT count(*) FROM examples WHERE {condition}", arguments).fetchone()[0]  # noqa: S608
    chosen = random.Random(seed).sample(range(count), min(limit, count))  # noqa: S311 - a sample, not a secret
    wanted = set(chosen)
    query = f"SELECT id FROM examples WHERE {condition} ORDER BY id"  # noqa: S608
    found = {place: row[0] for place, row in enumerate(connection.execute(query, arguments)) if place in wanted}
    return [found[place] for place in chosen]


def _beginning(conversations: str) -> str:
    """The first words of the first user turn."""
    turns = json.loads(conversations)
    text = next((turn["content"] for turn in turns if turn["role"] == "user"), "")
    words = " ".join(text.split())
    return words if len(words) <= 80 else words[:79] + "…"
