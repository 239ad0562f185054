"""The section `gate`: what judges, and the bars of a release."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from karma_electric.errors import InputError, shown
from karma_electric.parameters import Parameters

URL_VARIABLE = "KARMA_BASE_URL"  # wins over gate.base_url, so that a recipe need not name a machine


class GateParams(Parameters):
    engine: Literal["llama.cpp", "transformers", "openai"]
    base_url: str | None = Field(description="of engine openai: up to its routes, http://HOST:PORT/v1")
    served_model: str | None = Field(min_length=1, description="its name there; null: the only one")
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

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        return None if url is None else _checked_url(url)

    @model_validator(mode="after")
    def _server_keys_go_with_a_server(self) -> GateParams:
        for name in ("base_url", "served_model"):
            if self.engine != "openai" and (found := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name}: found {shown(found)}, which goes with engine openai; engine is {self.engine}; set it to "
                    "null, or change the engine"
                )
        return self


def server_url(params: GateParams, environment: Mapping[str, str] = os.environ) -> str:
    """Where the server of engine openai is: what KARMA_BASE_URL says, else the recipe. Raises InputError."""
    if told := environment.get(URL_VARIABLE):
        try:
            return _checked_url(told)
        except ValueError as error:
            raise InputError(f"{URL_VARIABLE}: {error}") from None
    if params.base_url is None:
        raise InputError(
            f"gate.base_url: null, and {URL_VARIABLE} is not set; engine openai needs the address of a server, such as "
            "http://127.0.0.1:8080/v1"
        )
    return params.base_url


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError as error:
        raise ValueError(f"expected an address such as http://127.0.0.1:8080/v1 ({error})") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError("expected an address without a name and password; put a key into KARMA_API_KEY")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected an address such as http://127.0.0.1:8080/v1")
    return url
