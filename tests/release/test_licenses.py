"""What the base model's licence asks for is in the release."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest
import yaml

from karma_electric.errors import InputError
from karma_electric.integrity import write_manifest
from karma_electric.recipe import read_recipe
from karma_electric.release.build import ReleaseInputs, build_release
from karma_electric.release.licenses import license_files
from karma_electric.release.params import ReleaseParams
from tests.release.release_files import PARAMS, make_inputs

LLAMA = PARAMS.model_copy(update={"title": "Llama Tiny"})


def llama_inputs(folder: Path) -> ReleaseInputs:
    inputs = make_inputs(folder)
    base = {"source": "hub", "repo": "meta-llama/Llama-3.1-8B-Instruct", "revision": "d" * 40, "license": "llama3.1"}
    write_manifest(inputs.base_manifest.parent, base)
    title = {"title": "Llama Tiny"}
    return dataclasses.replace(inputs, recipe={**inputs.recipe, "release": {**inputs.recipe["release"], **title}})


def built(inputs: ReleaseInputs, folder: Path, params: ReleaseParams) -> Path:
    build_release(inputs, folder, params=params)
    return folder


def test_a_llama_base_brings_its_licence_notice_and_words(tmp_path: Path) -> None:
    release = built(llama_inputs(tmp_path / "project"), tmp_path / "release", LLAMA)
    card = (release / "README.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "llama3.1"
    assert "llama" in head["tags"]
    assert "\n# Llama Tiny v8\n" in card
    assert "\nBuilt with Llama.\n" in card.split("## Use")[0]
    assert "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT" in (release / "LICENSE").read_text("utf-8")
    notice = (release / "NOTICE").read_text("utf-8")
    assert notice.startswith(
        "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, "
    )


def test_a_llama_base_asks_for_a_name_that_begins_with_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"release\.title: found 'Tiny', .* a name that begins with 'Llama'"):
        build_release(llama_inputs(tmp_path / "project"), tmp_path / "release", params=PARAMS)
    assert not (tmp_path / "release").exists()


def test_another_base_brings_its_own(tmp_path: Path) -> None:
    release = built(make_inputs(tmp_path / "project"), tmp_path / "release", PARAMS)
    text = (release / "LICENSE").read_bytes()
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
    assert (release / "NOTICE").read_text("utf-8").startswith("Tiny is a modified version of org/small")
    assert "Llama" not in (release / "README.md").read_text("utf-8")
    citation = yaml.safe_load((release / "CITATION.cff").read_text("utf-8"))
    assert (citation["cff-version"], citation["title"], citation["version"]) == ("1.2.0", "Tiny", "v8")
    assert (citation["date-released"], citation["license"]) == ("2026-11-21", "Apache-2.0")


def test_a_licence_without_its_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"base\.license: found 'gemma'"):
        license_files("gemma", title="Tiny", base_repo="org/small")


def test_the_recipe_is_asked_before_anything_is_trained(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "profiles/llama31-8b.yaml").read_text("utf-8")
    path = tmp_path / "params.yaml"
    path.write_text(text, "utf-8")
    assert read_recipe(path).release.title.startswith("Llama ")
    path.write_text(text.replace("title: Llama Karma", "title: Karma"), "utf-8")
    with pytest.raises(InputError, match=r"params\.yaml: release\.title: found 'Karma Electric 8B'"):
        read_recipe(path)
