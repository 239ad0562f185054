"""Which accepted examples an export takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Selection:
    """None lets every row through. A row without a score reaches no `min_score`, not even 0.

    A row without a tier is in no tier.
    """

    min_score: int | None = None
    exclude_templates: bool = False
    tiers: Collection[str] | None = None
    roles: Collection[str] | None = None
    categories: Collection[str] | None = None
    languages: Collection[str] | None = None

    def in_sql(self) -> tuple[str, list[Any]]:
        """The condition for accepted rows of `examples`, and the values of its question marks."""
        conditions = ["status = 'accepted'"]
        values: list[Any] = []
        if self.exclude_templates:
            conditions.append("coalesce(template_flag, '') = ''")
        if self.min_score is not None:
            conditions.append("hermes_score >= ?")
            values.append(self.min_score)
        columns = {"tier": self.tiers, "role": self.roles, "category": self.categories, "language": self.languages}
        for column, wanted in columns.items():
            if wanted is not None:
                conditions.append(f"{column} IN ({', '.join('?' * len(wanted))})")
                values += sorted(wanted)
        return " AND ".join(conditions), values
