"""The section `release`: what the release is called."""

from __future__ import annotations

import datetime

from pydantic import Field, field_validator

from karma_electric.parameters import Parameters


class ReleaseParams(Parameters):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="file names start with it")
    version: str = Field(pattern=r"^v[0-9]+(\.[0-9]+)*$")
    date: datetime.date = Field(description="the only date that a built file may carry")
    title: str = Field(description="the card's heading")
    languages: list[str] = Field(min_length=1)

    @field_validator("date", mode="before")
    @classmethod
    def _quoted(cls, value: object) -> object:
        if isinstance(value, datetime.date):
            raise ValueError(f'expected text in quotes, "{value.isoformat()}": DVC reads no YAML dates')  # noqa: TRY004
        return value
