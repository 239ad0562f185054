"""The section `base`: the model that everything starts from, pinned to its bytes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from karma_electric.parameters import Parameters

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="64 lower-case hex digits")]
License = Literal["apache-2.0", "llama3.1", "mit"]


class PackagedBase(Parameters):
    """A GGUF file inside an installed Python package; it is dequantised to bf16 safetensors."""

    source: Literal["package"]
    package: str = Field(description="the distribution's name, as pip knows it")
    file: str = Field(description="the file's name inside the package")
    sha256: Sha256
    repo: str = Field(description="the hub repo that the file was made from, for the model card")
    license: License


class HubBase(Parameters):
    """A model repo of the Hugging Face hub at one commit."""

    source: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="ORG/NAME")
    revision: str = Field(pattern=r"^[0-9a-f]{40}$", description="the commit, 40 hex digits; a branch can move")
    license: License


class FolderBase(Parameters):
    """A folder with config, tokenizer and safetensors, pinned by the hash that `karma hash FOLDER` prints."""

    source: Literal["folder"]
    path: str
    sha256: Sha256
    repo: str
    license: License


BaseParams = Annotated[PackagedBase | HubBase | FolderBase, Field(discriminator="source")]


class BaseSection(Parameters):
    """Wraps the union, because a discriminated union is no model of its own."""

    base: BaseParams
