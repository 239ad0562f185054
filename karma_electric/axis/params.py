"""The sections `axis` (what is measured on the model) and `acap` (what follows from the measurement)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from karma_electric.parameters import Parameters

PromptKind = Literal["persona", "neutral", "coding", "adversarial"]


class AxisParams(Parameters):
    source: Literal["prompts", "training-set"] = Field(
        description="contrast prompts: data/prompts, or the first user turns of the blend's `to` set"
    )
    samples: int = Field(ge=2, description="contrast prompts to use; fewer are used when there are fewer")
    seed: int = Field(ge=0, lt=2**32, description="which prompts are sampled")
    max_prompt_tokens: int = Field(ge=32, description="longer prompts are refused, never cut")
    answer_tokens: int = Field(ge=1, description="length of the answers whose projections are measured")
    batch_size: int = Field(ge=1)


class AcapParams(Parameters):
    rule: Literal["percentile", "mean_k_sigma"]
    percentile: float = Field(gt=0, lt=100, description="of the persona's own generated tokens; 75 caps a quarter")
    k_sigma: float = Field(ge=0, description="mean_k_sigma: tau = mean - k_sigma x std over all generated tokens")
    threshold: float | None = Field(gt=0, description="T of the global form, tau = -T in every layer; null: the rule")
    alpha: float = Field(gt=0, le=1, description="share of the excess that is removed; 1 is the hard cap")
    layers: tuple[int, int] | None = Field(description="first and last capped block; null: 22/32 to 28/32 of depth")

    @field_validator("layers")
    @classmethod
    def _ordered(cls, layers: tuple[int, int] | None) -> tuple[int, int] | None:
        if layers is not None and not 1 <= layers[0] <= layers[1]:
            raise ValueError("expected [first, last] with 1 <= first <= last; block 0 cannot be capped")
        return layers
