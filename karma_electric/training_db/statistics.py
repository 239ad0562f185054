"""Counts over the training database, read from an index and not from the texts."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

# (name, least score); the bands of the judge's score, best first.
SCORE_BANDS = (("35-40", 35), ("32-34", 32), ("28-31", 28), ("0-27", 0))
UNSCORED, NONE = "unscored", "none"
_BANDS_IN_SQL = " ".join(f"WHEN hermes_score >= {least} THEN '{name}'" for name, least in SCORE_BANDS)
_BAND = f"CASE {_BANDS_IN_SQL} ELSE '{UNSCORED}' END"

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
    groups = [
        (dict(zip(row.keys(), tuple(row), strict=True)), row["examples"])
        for row in connection.execute(
            f"SELECT status, category, role, tier, language, {_BAND} AS band, "  # noqa: S608 - names of ours
            "coalesce(template_flag, '') <> '' AS flagged, count(*) AS examples FROM examples "
            "GROUP BY status, category, role, tier, language, band, flagged"
        )
    ]

    def table(value_of: Callable[[dict[str, object]], str]) -> Counts:
        counts: dict[str, Counter[str]] = {}
        for group, examples in groups:
            counts.setdefault(value_of(group), Counter())[str(group["status"])] += examples
        return {value: dict(sorted(counts[value].items())) for value in sorted(counts)}

    def column(name: str) -> Counts:
        return table(lambda group: str(group[name]) if group[name] else NONE)

    by_status: Counter[str] = Counter()
    for group, examples in groups:
        by_status[str(group["status"])] += examples
    by_score = column("band")
    return Statistics(
        examples=by_status.total(),
        accepted=by_status["accepted"],
        with_template_flag=sum(examples for group, examples in groups if group["flagged"]),
        by_status=dict(sorted(by_status.items())),
        by_category=column("category"),
        by_tier=column("tier"),
        by_role=column("role"),
        by_language=column("language"),
        by_score={band: by_score.get(band, {}) for band in (*(name for name, _ in SCORE_BANDS), UNSCORED)},
    )
