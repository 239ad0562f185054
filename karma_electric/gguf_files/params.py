"""The section `quantize`: the GGUF files to make."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from karma_electric.parameters import Parameters

GgufType = Literal["F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]


class QuantizeParams(Parameters):
    types: list[GgufType] = Field(min_length=1, description="one GGUF file for each")
    judged: GgufType = Field(description="the file that the gate judges; one of types")
