"""Counts over the training database, read from an index and not from the texts."""

from __future__ import annotations

import sqlite3
from collections import Counter
from dataclasses import dataclass
from typing import Any

# (name, least score); the bands of the judge's score, best first.
SCORE_BANDS = (("35-40", 35), ("32-34", 32), ("28-31", 28), ("0-27", 0))
UNSCORED, NONE = "unscored", "none"

_FACETS = ("category", "tier", "role", "language")
_REACHED = ", ".join(
    f"coalesce(sum(hermes_score >= {least}), 0) AS reached_{place}" for place, (_, least) in enumerate(SCORE_BANDS)
)
# Grouped by the first columns of the index `examples_for_counts`, in its order, so that nothing is sorted.
_QUERY = (
    f"SELECT status, category, role, tier, language, count(*) AS examples, {_REACHED}, "  # noqa: S608 - names of ours
    "coalesce(sum(template_flag <> ''), 0) AS flagged FROM examples GROUP BY status, category, role, tier, language"
)

Counts = dict[str, dict[str, int]]  # value -> status -> number of examples


@dataclass(frozen=True, slots=True)
class Statistics:
    """Every table is value -> status -> number of examples; a row without a value counts under `none`."""

    examples: int
    accepted: int
    with_template_flag: int
    by_status: dict[str, int]
    by_category: Counts
    by_tier: Counts
    by_role: Counts
    by_language: Counts
    by_score: Counts


def count_everything(connection: sqlite3.Connection) -> Statistics:
    """Tables in alphabetical order of their values, scores from the best band to `unscored`."""
    by_status: Counter[str] = Counter()
    tables: dict[str, dict[str, Counter[str]]] = {name: {} for name in _FACETS}
    bands: dict[str, Counter[str]] = {name: Counter() for name in (*(name for name, _ in SCORE_BANDS), UNSCORED)}
    flagged = 0
    for row in connection.execute(_QUERY):
        status, examples = row["status"], row["examples"]
        by_status[status] += examples
        flagged += row["flagged"]
        for name, table in tables.items():
            table.setdefault(row[name] or NONE, Counter())[status] += examples
        for band, count in _bands(row).items():
            bands[band][status] += count
    ordered = {
        name: {value: dict(sorted(table[value].items())) for value in sorted(table)} for name, table in tables.items()
    }
    return Statistics(
        examples=by_status.total(),
        accepted=by_status["accepted"],
        with_template_flag=flagged,
        by_status=dict(sorted((+by_status).items())),
        by_category=ordered["category"],
        by_tier=ordered["tier"],
        by_role=ordered["role"],
        by_language=ordered["language"],
        by_score={band: dict(sorted((+counts).items())) for band, counts in bands.items()},
    )


def _bands(row: Any) -> dict[str, int]:
    """The examples of each band, from how many reach each band's least score."""
    counts: dict[str, int] = {}
    above = 0
    for place, (name, _) in enumerate(SCORE_BANDS):
        reached = row[f"reached_{place}"]
        counts[name] = reached - above
        above = reached
    counts[UNSCORED] = row["examples"] - above
    return counts
