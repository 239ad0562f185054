"""The section `train`: QLoRA fine-tuning."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from karma_electric.parameters import Parameters

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraParams(Parameters):
    rank: int = Field(ge=1, le=1024)
    alpha: float = Field(gt=0, description="the update is scaled by alpha / rank")
    dropout: float = Field(ge=0, lt=1)
    targets: list[Projection] = Field(min_length=1)


class TrainParams(Parameters):
    seed: int = Field(ge=0, lt=2**32)
    examples: int | None = Field(ge=1, description="size of a subset stratified by category; null takes the whole set")
    epochs: float = Field(gt=0)
    max_length: int = Field(ge=16, description="longest conversation, in tokens; longer ones are cut at the end")
    sequences_per_step: int = Field(ge=1, description="the effective batch")
    tokens_per_microbatch: int = Field(ge=16, description="most tokens in memory at once; conversations are packed")
    recomputed_share: float = Field(
        ge=0, le=1, description="share of the blocks whose activations are computed again instead of kept"
    )
    learning_rate: float = Field(gt=0)
    schedule: Literal["cosine", "linear", "constant"]
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_gradient_norm: float = Field(gt=0)
    optimizer: Literal["paged_adamw_8bit", "adamw_torch"]
    lora: LoraParams

    @model_validator(mode="after")
    def _a_conversation_fits(self) -> TrainParams:
        if self.tokens_per_microbatch < self.max_length:
            raise ValueError(
                f"tokens_per_microbatch {self.tokens_per_microbatch} must be at least max_length {self.max_length}"
            )
        return self
