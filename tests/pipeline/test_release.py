"""The release folder of the real graph: its card, its recipe, and the whole of it finished, signed and verified."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from karma_electric.base_model.make import make_base
from karma_electric.canonical import read_json_object
from karma_electric.integrity import read_manifest, sha256_file, write_manifest
from karma_electric.release import rebuild
from karma_electric.release.digests import paths_below
from karma_electric.release.finishing import finish_release
from karma_electric.release.manifest import read_release_manifest
from karma_electric.release.readiness import machine
from karma_electric.release.rebuild import rebuild_release
from karma_electric.release.verify import verify_release
from karma_electric.safetensors_files import open_safetensors, save_safetensors
from tests.pipeline.project import Project
from tests.release.mutations import all_mutations, signature_bytes, survivors
from tests.release.release_files import make_key, write_json
from tests.release.test_mutations import checker
from tests.server.serving import serving

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


def test_a_stranger_makes_the_release_again(built: Project, tiny_base: tuple[Path, str], tmp_path: Path) -> None:
    """From the published folder and the base alone, in another folder."""
    release = _staged(built, tmp_path / "release")
    private, public = make_key(tmp_path / "keys")
    finish_release(release, private_key=private)
    words = ["verify", str(release), "--public-key", str(public), "--rebuild", "--base", str(tiny_base[0])]
    (tmp_path / "elsewhere").mkdir()
    said = Project(tmp_path / "elsewhere").run("karma", *words, "--json").stdout
    found = json.loads(said)["rebuild"]
    assert found["elsewhere"] == [], "the same CPU and versions"
    assert {line["result"] for line in found["lines"]} == {"equal"}
    made = [line["path"] for line in found["lines"]]
    assert sorted([*made, *found["taken"], "model.sig"]) == sorted({*paths_below(release), "base", "merged"})
    assert {"base", "merged", "tiny-v8-Q8_0.gguf", "bodhisattva_axis_v8.pt", "README.md", "manifest.json"} < set(made)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("adapters/v6/adapter_model.safetensors", "adapters/blend/adapter_model.safetensors"),
        ("adapters/blend/adapter_model.safetensors", "adapters/blend/adapter_model.safetensors"),
        ("projections.safetensors", "bodhisattva_axis_v8.gguf"),
        ("bodhisattva_axis_v8.gguf", "bodhisattva_axis_v8.gguf"),
        ("Modelfile", "Modelfile"),
    ],
)
def test_a_tampered_file_with_fitting_hashes_is_not_made_again(
    built: Project, tiny_base: tuple[Path, str], tmp_path: Path, path: str, named: str
) -> None:
    """Every hash fits and no signature is asked for, so that only making it again finds the value."""
    release = _staged(built, tmp_path / "release")
    _tamper(release, path)
    finish_release(release, private_key=None)
    verify_release(release, unsigned=True, report=lambda line: None)
    found = rebuild_release(release, base=tiny_base[0], report=lambda line: None)
    assert found.faults[0] == named


def _tamper(release: Path, path: str) -> None:
    """Another value in a file, and all that names the file's hash made to fit, but for card and manifest."""
    file = release / path
    if path == "projections.safetensors":
        metadata = dict(open_safetensors(file).metadata)
        tensors = load_file(file)
        tensors["persona.fit"] *= 1.01
        save_safetensors(file, tensors, metadata)
        return
    data = bytearray(file.read_bytes())
    data[-2] ^= 0x40  # half of the last float, or the last letter
    file.write_bytes(data)
    if path.startswith("adapters/"):
        write_manifest(file.parent, read_manifest(file.parent)["identity"])
    elif path == "bodhisattva_axis_v8.gguf":
        gate = read_json_object(release / "gate.json")
        gate["judged"]["axis_sha256"] = sha256_file(file)
        write_json(release / "gate.json", gate)


def test_with_another_base_conversion_the_differences_are_measured(
    built: Project, tiny_base: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another version of a library had written the base: another CPU is recorded, and every manifest differs."""
    release = _staged(built, tmp_path / "release")
    write_json(release / "provenance.json", read_json_object(release / "provenance.json") | {"machine": {}})
    finish_release(release, private_key=None)

    def another(params: Any, output: Path, report: Any = None) -> dict[str, Any]:
        make_base(params, output, report)
        config = read_json_object(output / "config.json")
        write_json(output / "config.json", {**config, "transformers_version": "9.9.9"})
        return write_manifest(output, read_manifest(output)["identity"])

    monkeypatch.setattr(rebuild, "make_base", another)
    found = rebuild_release(release, base=tiny_base[0], report=lambda line: None)
    assert found.faults == []
    assert any(line.startswith("processor: ") for line in found.elsewhere)
    near = {line.path for line in found.lines if line.result == "near"}
    assert near == {"base", "merged", "adapters/blend/manifest.json", "manifest.json", "tiny-v8-Q8_0.gguf"}


def test_the_base_that_is_a_folder_must_be_given(built: Project, tmp_path: Path) -> None:
    release = _staged(built, tmp_path / "release")
    finish_release(release, private_key=None)
    for words, code in (([], 1), (["--base", str(tmp_path / "nowhere")], 1), (["--base", str(release / "sets")], 6)):
        said = built.run("karma", "verify", str(release), "--unsigned", "--rebuild", *words, ok=False)
        assert said.returncode == code, said.stderr
        assert re.search(r"^error: .*base", said.stderr, re.MULTILINE)


def test_every_command_of_the_card_is_run_or_marked(built: Project, tmp_path: Path) -> None:
    """`karma serve` answers, `karma verify` holds; the lines for PyTorch are run above, those for Ollama are marked."""
    release = _staged(built, tmp_path / "release")
    private, _ = make_key(tmp_path / "keys", "KEY")
    finish_release(release, private_key=private)
    shutil.copyfile(release / "public-key.pem", tmp_path / "KEY.pub.pem")
    card = (release / "README.md").read_text("utf-8")
    blocks = re.findall(r"([^\n]*)\n\n```(bash|python)\n(.*?)```", card, re.DOTALL)
    commands = {line: before for before, kind, text in blocks if kind == "bash" for line in text.splitlines()}
    unmarked = [line for line, before in commands.items() if "not run by our tests" not in before.lower()]
    serve, verify = unmarked
    assert serve == "karma serve tiny-v8-Q8_0.gguf --acap bodhisattva_axis_v8.gguf"
    assert verify == "karma verify . --public-key KEY.pub.pem"
    clone = Project(release)
    assert clone.run(*verify.replace("KEY.pub.pem", str(tmp_path / "KEY.pub.pem")).split()).stdout.startswith("valid\n")
    with contextlib.chdir(release), serving(*serve.split()[2:]) as server:
        answer = server.complete(model="tiny-v8-Q8_0", messages=[{"role": "user", "content": "Hi"}], max_tokens=3)
        assert answer.choices[0].message.content is not None


@pytest.mark.long
def test_every_mutation_of_the_built_release_is_caught(built: Project, tmp_path: Path) -> None:
    """Of the real graph's files, with a model's and an axis's GGUF and adapters."""
    release = _staged(built, tmp_path / "release")
    private, public = make_key(tmp_path / "keys")
    finish_release(release, private_key=private)
    chosen = all_mutations(release, each=6, at_most=None, seed=5) + list(signature_bytes(release, 11))
    unseen, words = survivors(release, chosen, checker(release, public))
    assert not [(mutation.kind, mutation.path) for mutation in unseen]
    assert len(words) == len(chosen) > 3000


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
    provenance = {"commit": "a" * 40, "dvc_lock_sha256": "b" * 64, "machine": machine(), "override": None}
    write_json(folder / "provenance.json", provenance)
    return folder
