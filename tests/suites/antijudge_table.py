"""Precision and recall of the anti-judge on the labelled responses, as docs/antijudge.md shows them.

python -m tests.suites.antijudge_table
"""

from __future__ import annotations

from dataclasses import dataclass

from karma_electric.canonical import read_json_lines
from karma_electric.suites.antijudge import CATEGORIES, antijudge
from tests.suites.suite_files import REPOSITORY

LABELLED = REPOSITORY / "data" / "antijudge" / "labelled.jsonl"
PARTS = ("tuning", "held-out", "reworded")


@dataclass(frozen=True)
class Labelled:
    """A response and the categories that a person sees in it."""

    id: str
    part: str
    about: str
    kind: str
    labels: frozenset[str]
    response: str


def labelled() -> list[Labelled]:
    return [
        Labelled(row["id"], row["half"], row["about"], row["kind"], frozenset(row["labels"]), row["response"])
        for _, row in read_json_lines(LABELLED)
    ]


def table() -> str:
    """Markdown: per category and part, `precision / recall (found right + found wrong, missed)`."""
    rows = labelled()
    found = {row.id: set(antijudge(row.response).penalties) for row in rows}
    lines = [f"| category | {' | '.join(PARTS)} |", "|---" * (len(PARTS) + 1) + "|"]
    for category in CATEGORIES:
        cells = []
        for part in PARTS:
            here = [row for row in rows if row.part == part]
            right = sum(category in found[row.id] and category in row.labels for row in here)
            wrong = sum(category in found[row.id] and category not in row.labels for row in here)
            missed = sum(category not in found[row.id] and category in row.labels for row in here)
            precision = f"{right / (right + wrong):.2f}" if right + wrong else "-"
            recall = f"{right / (right + missed):.2f}" if right + missed else "-"
            cells.append(f"{precision} / {recall} ({right} right, {wrong} wrong, {missed} missed)")
        lines.append(f"| {category} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())  # noqa: T201
