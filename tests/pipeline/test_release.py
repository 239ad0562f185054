"""The release folder of the real graph: its card, its recipe, and the whole of it finished, signed and verified."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from karma_electric.release.finishing import finish_release
from karma_electric.release.manifest import read_release_manifest
from tests.pipeline.project import Project
from tests.release.release_files import make_key, write_json

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


def test_the_built_files_are_signed_verified_and_judged_again(built: Project, tmp_path: Path) -> None:
    release = _staged(built, tmp_path / "release")
    private, public = make_key(tmp_path / "keys")
    finish_release(release, private_key=private)
    found = json.loads(
        built.run("karma", "verify", str(release), "--public-key", str(public), "--gate", "--json").stdout
    )
    assert (found["valid"], found["name"], found["judged_again"]) == (True, "tiny", True)
    assert found["verdict"] in ("fail", "inconclusive"), "a subset never passes"


def test_the_pytorch_lines_of_the_card_run(built: Project, tiny_base: tuple[Path, str], tmp_path: Path) -> None:
    """With the folder of the tiny base in the place of the repo on the hub."""
    release = _staged(built, tmp_path / "release")
    card = (release / "README.md").read_text("utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    lines = f"import os\nos.chdir({str(release)!r})\n" + code[1].replace('"test/tiny"', repr(str(tiny_base[0])))
    said = built.run(sys.executable, "-c", f"{lines}\nprint(model.peft_config['default'].r)").stdout
    assert int(said) == 32, "the blend has the ranks of both adapters"


def _staged(project: Project, folder: Path) -> Path:
    """The release with its large files beside it and a provenance, as publishing makes it."""
    models = project.folder / "models"
    shutil.copytree(models / "release", folder)
    for entry in read_release_manifest(folder)["files"]:
        name = entry["path"]
        for source in (models / name, models / "gguf" / name, models / "axis" / name):
            if source.is_file() and not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / name)
    write_json(folder / "provenance.json", {"commit": "a" * 40, "dvc_lock_sha256": "b" * 64, "override": None})
    return folder
