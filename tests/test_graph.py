from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from karma_electric.errors import InputError
from karma_electric.graph import Stage, check_inputs_exist, read_lock, read_stages, stages_that_differ
from karma_electric.parameters import read_yaml
from tests.cli.running import ROOT

RECIPE: dict[str, Any] = {"sets": {"a": "a.db", "b": "sets/a.jsonl"}, "kinds": ["x", "y"], "one": {"name": "n", "k": 3}}
GRAPH = """
stages:
  make:
    cmd: make
    deps: ["${one.name}-${one.k}.txt"]
    outs:
      - made
      - kept: {cache: false}
  export:
    foreach: ${sets}
    do:
      cmd: export ${item}
      deps: ["${item}", "patches/${key}"]
      outs: ["sets/${key}.jsonl"]
      metrics: ["metrics/${key}.json": {cache: false}]
  pack:
    foreach: ["${kinds}", last]
    do:
      cmd: pack
      plots: ["plots/${item}.json"]
"""


def stages_of(tmp_path: Path, text: str) -> list[Stage]:
    (tmp_path / "dvc.yaml").write_text(text)
    return read_stages(tmp_path / "dvc.yaml", RECIPE)


def test_templates_are_filled_in_and_lists_unrolled(tmp_path: Path) -> None:
    stages = stages_of(tmp_path, GRAPH.replace('["${kinds}", last]', "${kinds}"))
    assert stages == [
        Stage("make", ("n-3.txt",), ("made", "kept")),
        Stage("export@a", ("a.db", "patches/a"), ("sets/a.jsonl", "metrics/a.json")),
        Stage("export@b", ("sets/a.jsonl", "patches/b"), ("sets/b.jsonl", "metrics/b.json")),
        Stage("pack@x", (), ("plots/x.json",)),
        Stage("pack@y", (), ("plots/y.json",)),
    ]


def test_the_graph_is_read_as_dvc_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from dvc.dependency.param import ParamsDependency
    from dvc.repo import Repo

    monkeypatch.chdir(ROOT)
    with Repo(os.fspath(ROOT)) as repo:
        theirs = {
            stage.addressing: (
                {str(d) for d in stage.deps if not isinstance(d, ParamsDependency)},
                {str(out) for out in stage.outs},
            )
            for stage in repo.index.stages
        }
    ours = read_stages(ROOT / "dvc.yaml", read_yaml(ROOT / "params.yaml"))
    assert {stage.name: (set(stage.dependencies), set(stage.outputs)) for stage in ours} == theirs
    assert {"export@v6", "train@v8", "quantize@Q8_0", "calibrate-thresholds"} <= theirs.keys()


BAD_GRAPHS: dict[str, tuple[str, str]] = {
    "no stages": ("other: 1", "dvc.yaml: stages is missing or no mapping"),
    "empty stages": ("stages:", "dvc.yaml: stages is missing or no mapping"),
    "a list of stages": ("stages: [make]", "dvc.yaml: stages is missing or no mapping"),
    "a stage that is text": ("stages: {make: x}", "dvc.yaml: stages.make: found 'x', expected a mapping"),
    "foreach without do": ("stages: {make: {foreach: [1]}}", "dvc.yaml: stages.make.do: found None"),
    "foreach of a number": (
        "stages: {make: {foreach: '${one.k}', do: {}}}", "dvc.yaml: stages.make.foreach: found 3, expected a list"
    ),
    "deps that are text": ("stages: {make: {deps: x}}", "dvc.yaml: stages.make.deps: found 'x', expected a list"),
    "a path that is a number": ("stages: {make: {outs: [3]}}", "dvc.yaml: stages.make.outs: found 3, expected a path"),
    "a path that is empty": ("stages: {make: {outs: [{}]}}", "dvc.yaml: stages.make.outs: found {}, expected a path"),
    "an unknown name": (
        "stages: {make: {deps: ['${one.nome}']}}", "dvc.yaml: stage make uses ${one.nome}, which the recipe lacks"
    ),
    "a name below a value": (
        "stages: {make: {deps: ['${one.name.x}']}}", "dvc.yaml: stage make uses ${one.name.x}, which the recipe lacks"
    ),
    "an unknown list": (
        "stages: {make: {foreach: '${gone}', do: {}}}", "dvc.yaml: stage make uses ${gone}, which the recipe lacks"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BAD_GRAPHS.values(), ids=BAD_GRAPHS.keys())
def test_a_bad_graph_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        stages_of(tmp_path, text)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_an_input_is_there_or_made_or_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    makers = [Stage("make", (), ("made", "folder/inside"))]
    for dependency in ("there", "made", "made/part", "folder"):
        check_inputs_exist([*makers, Stage("use", (dependency,), ())], {})
    for dependency in ("gone", "mad", "folder/other"):
        with pytest.raises(
            InputError, match=f"{dependency}: missing, but the stage use needs it; restore it with `git"
        ):
            check_inputs_exist([*makers, Stage("use", (dependency,), ())], {})


def test_a_missing_input_that_the_recipe_names_is_named_by_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^params\.yaml: sets\.a: found 'a\.db', a file that is missing"):
        check_inputs_exist([Stage("use", ("a.db",), ())], {"a.db": "params.yaml: sets.a"})


def lock_with(change: Callable[[dict[str, Any]], object]) -> str:
    lock: dict[str, Any] = {
        "schema": "2.0",
        "stages": {
            "fingerprint": {"cmd": "x", "outs": [{"path": "f.json", "md5": "11"}]},
            "train@v6": {"cmd": "x", "deps": [{"path": "f.json", "md5": "11"}], "outs": [{"path": "v6", "md5": "22"}]},
            "check": {"cmd": "x"},
        },
    }
    change(lock["stages"])
    return yaml.safe_dump(lock, sort_keys=False)


def test_stages_whose_outputs_differ_are_named() -> None:
    before = read_lock(lock_with(lambda stages: None), "dvc.lock")
    assert before == {"fingerprint": {"f.json": "11"}, "train@v6": {"v6": "22"}, "check": {}}
    same = read_lock(lock_with(lambda stages: stages["train@v6"].update(cmd="y")), "dvc.lock")
    assert stages_that_differ(before, same) == []
    other = read_lock(lock_with(lambda stages: stages["train@v6"]["outs"][0].update(md5="33")), "dvc.lock")
    assert stages_that_differ(before, other) == ["train@v6"]
    new = read_lock(lock_with(lambda stages: stages.update(merge={"outs": [{"path": "m", "md5": "4"}]})), "dvc.lock")
    assert stages_that_differ(before, new) == ["merge"]


def test_an_empty_lock_has_no_stages() -> None:
    assert read_lock("", "dvc.lock") == {}


@pytest.mark.parametrize(
    "text",
    ["<<<<<<< HEAD\nschema: '2.0'", "- 1", "stages: [1]", "stages: {a: {outs: [{md5: x}]}}", "stages: {a: {outs: 1}}"],
)
def test_a_file_that_is_no_lock_is_named(text: str) -> None:
    with pytest.raises(InputError, match=r"^dvc\.lock: not a lock file of DVC; restore it with `git checkout"):
        read_lock(text, "dvc.lock")
