"""The release folder of the real graph."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.pipeline.project import Project

pytestmark = pytest.mark.pipeline


def test_the_card_of_the_built_release_can_be_made_again(built: Project) -> None:
    said = built.run("karma", "card", "verify", "models/release").stdout
    assert said.startswith("models/release: ")
    assert int(said.split()[1]) > 100
    listed = json.loads(built.run("karma", "card", "numbers", "models/release", "--json").stdout)
    assert {"gate.json", "metrics/train/v6.json", "metrics/train/v8.json"} <= {each["file"] for each in listed}


def test_the_released_recipe_is_the_one_that_built_it(built: Project) -> None:
    reproduce = json.loads((built.folder / "models/release/reproduce.json").read_text("utf-8"))
    recipe = yaml.safe_load((built.folder / "params.yaml").read_text("utf-8"))
    assert reproduce["recipe"] == {**recipe, "base": {**recipe["base"], "path": "tiny-llama"}}
    pins = dict(line.split("==") for line in (built.folder / "constraints.txt").read_text("utf-8").split())
    assert len(reproduce["packages"]) == len(pins)
    assert str(built.folder.parent) not in json.dumps(reproduce)
