"""The section `release`: what the release is called."""

from __future__ import annotations

import datetime
import re

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
        if not isinstance(value, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
            raise ValueError('expected a day in quotes, such as "2026-11-21"')  # a bare number would be a Unix time
        return value
