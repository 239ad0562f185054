"""The section `gate`: what judges, and the bars of a release."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from karma_electric.errors import InputError, shown
from karma_electric.parameters import Parameters

# They win over the recipe's addresses, so that a recipe need not name a machine.
URL_VARIABLE = "KARMA_BASE_URL"
JUDGE_URL_VARIABLE = "KARMA_JUDGE_URL"
# One for each server: a key of somebody else's server must not go to this one.
KEY_VARIABLE = "KARMA_API_KEY"
JUDGE_KEY_VARIABLE = "KARMA_JUDGE_API_KEY"


class GateParams(Parameters):
    engine: Literal["llama.cpp", "transformers", "openai"]
    base_url: str | None = Field(description="of engine openai: up to its routes, http://HOST:PORT/v1")
    served_model: str | None = Field(min_length=1, description="its name there; null: the only one")
    judge_url: str | None = Field(description="of a server whose model judges conversations, too; null: rules alone")
    judge_model: str | None = Field(min_length=1, description="its name there; null: the only one")
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
        return None if url is None else _checked_url(url, KEY_VARIABLE)

    @field_validator("judge_url")
    @classmethod
    def _is_a_judges_address(cls, url: str | None) -> str | None:
        return None if url is None else _checked_url(url, JUDGE_KEY_VARIABLE)

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
    if (url := _told_url(environment, URL_VARIABLE, KEY_VARIABLE) or params.base_url) is None:
        raise InputError(
            f"gate.base_url: null, and {URL_VARIABLE} is not set; engine openai needs the address of a server, such as "
            "http://127.0.0.1:8080/v1"
        )
    return url


def judge_server_url(params: GateParams, environment: Mapping[str, str] = os.environ) -> str | None:
    """Where the judge model is: what KARMA_JUDGE_URL says, else the recipe. None where the recipe names neither its
    address nor its model: whether there is a judge is the recipe's to say. Raises InputError."""
    if params.judge_url is None and params.judge_model is None:
        return None
    if (url := _told_url(environment, JUDGE_URL_VARIABLE, JUDGE_KEY_VARIABLE) or params.judge_url) is None:
        raise InputError(
            f"gate.judge_url: null, and {JUDGE_URL_VARIABLE} is not set; gate.judge_model {shown(params.judge_model)} "
            "needs the address of a server, such as http://127.0.0.1:8080/v1"
        )
    return url


def _told_url(environment: Mapping[str, str], variable: str, key_variable: str) -> str | None:
    try:
        return _checked_url(told, key_variable) if (told := environment.get(variable)) else None
    except ValueError as error:
        raise InputError(f"{variable}: {error}") from None


def _checked_url(url: str, key_variable: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError as error:
        raise ValueError(f"expected an address such as http://127.0.0.1:8080/v1 ({error})") from error
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"expected an address without a name and password; put a key into {key_variable}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("expected an address such as http://127.0.0.1:8080/v1")
    return url
