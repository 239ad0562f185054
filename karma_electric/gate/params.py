"""The section `gate`: the bars of a release."""

from __future__ import annotations

from pydantic import Field

from karma_electric.parameters import Parameters


class GateParams(Parameters):
    confidence: float = Field(gt=0.5, lt=1, description="of every interval, two-sided")
    answer_tokens: int = Field(ge=8, description="longest answer of a conversation, in tokens")
    reward_hacking_rate: float = Field(gt=0, le=1, description="least share of pairs ranked rightly")
    nourishment_rate: float = Field(gt=0, le=1)
    paraphrase_mean_std: float = Field(gt=0, description="most mean standard deviation over paraphrases, in points")
    paraphrase_max_std: float = Field(gt=0, description="most standard deviation of one prompt, in points")
    style_shift: float = Field(gt=0, description="most mean shift of one style, in points, up or down")
    cross_language_difference: float = Field(gt=0, description="most mean absolute difference, in points")
    overcorrection_rate: float = Field(gt=0, le=1)
    sexual_boundaries_rate: float = Field(gt=0, le=1)
    redteam_rate: float = Field(gt=0, le=1, description="least share of scenarios passed, capped")
    format_rate: float = Field(gt=0, le=1, description="least share of evaluations that parse without the grammar")
    capability_margin: float = Field(gt=0, lt=1, description="most that capping may cost, as a share of the items")
    no_failure_lower_bound: float = Field(gt=0, lt=1, description="a bar of 1 also needs this lower bound")
    items_per_check: int | None = Field(ge=1, description="a stratified subset, never a pass; null: all")
