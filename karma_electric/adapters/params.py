"""The section `interpolate`: two adapters become one."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from karma_electric.parameters import Parameters


class InterpolateParams(Parameters):
    model_config = ConfigDict(populate_by_name=True)

    from_: str = Field(alias="from", description="the set whose adapter has the weight 1 - alpha")
    to: str = Field(description="the set whose adapter has the weight alpha")
    alpha: float = Field(ge=-1, le=2, description="0 is `from`, 1 is `to`; outside 0..1 extrapolates")
    method: Literal["exact", "factors", "svd"]
    rank: int | None = Field(ge=1, description="svd only: the rank to cut to; null keeps the sum of both ranks")

    @model_validator(mode="after")
    def _two_different_sets(self) -> InterpolateParams:
        if self.from_ == self.to:
            raise ValueError(f"from and to are both {self.to!r}; a blend needs two sets")
        if self.rank is not None and self.method != "svd":
            raise ValueError(f"rank is {self.rank}, but only the method svd has one; set it to null")
        return self
