"""The section `export`: which rows of the training database become a training set."""

from __future__ import annotations

from pydantic import Field

from karma_electric.parameters import Parameters
from karma_electric.training_db.selection import Selection


class ExportParams(Parameters):
    min_score: int | None = Field(ge=0, le=40, description="least hermes_score; null takes all, and rows without one")
    exclude_templates: bool = Field(description="leave out rows that carry a template flag")
    tiers: list[str] | None = Field(description="tiers to keep; null keeps all")

    def selection(self) -> Selection:
        """The rows that these parameters let through."""
        return Selection(min_score=self.min_score, exclude_templates=self.exclude_templates, tiers=self.tiers)
