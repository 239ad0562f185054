"""The section `export`: which rows of the training database become a training set."""

from __future__ import annotations

from pydantic import Field

from karma_electric.parameters import Parameters


class ExportParams(Parameters):
    min_score: int | None = Field(ge=0, le=40, description="least hermes_score of a scored row; null takes all")
    exclude_templates: bool = Field(description="leave out rows that carry a template flag")
    tiers: list[str] | None = Field(description="tiers to keep; null keeps all")
