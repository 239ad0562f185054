"""The sections `axis` (what is measured on the model) and `acap` (what follows from the measurement)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

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
    position: Literal["last-prompt-token", "answer-mean"] = Field(
        description="whose states are contrasted: the prompt's last token, or the answer's mean",
    )
    second_language_share: float = Field(
        ge=0,
        lt=1,
        description="of the contrast prompts that have a `language` other than en; 0 is English only",
    )
    effect_sizes: bool = Field(description="measure Cohen's d of every layer, for acap.layer_choice")


class AcapParams(Parameters):
    rule: Literal["percentile", "mean_k_sigma"]
    percentile: float = Field(gt=0, lt=100, description="of the persona's own generated tokens; 75 caps a quarter")
    k_sigma: float = Field(ge=0, description="mean_k_sigma: tau = mean - k_sigma x std over all generated tokens")
    threshold: float | None = Field(gt=0, description="T of the global form, tau = -T in every layer; null: the rule")
    alpha: float = Field(gt=0, le=1, description="share of the excess that is removed; 1 is the hard cap")
    layers: tuple[int, int] | None = Field(description="first and last capped block; null: 22/32 to 28/32 of depth")
    layer_choice: Literal["depth", "effect-size"] = Field(
        description="without `layers`: the fixed depth, or as many layers where persona and generic differ most",
    )

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        if self.layers is not None and self.layer_choice != "depth":
            raise ValueError("layers and layer_choice: effect-size exclude each other; set layers to null")
        return self

    @field_validator("layers")
    @classmethod
    def _ordered(cls, layers: tuple[int, int] | None) -> tuple[int, int] | None:
        if layers is not None and not 1 <= layers[0] <= layers[1]:
            raise ValueError("expected [first, last] with 1 <= first <= last; block 0 cannot be capped")
        return layers
