"""`karma publish --dataset`: every training set is a dataset of its own, with a card whose numbers are counted."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from karma_electric.release.signature import verify_signature
from tests.hub_server.faults import Fault
from tests.hub_server.store import Repo
from tests.release.publish_project import CZECH
from tests.release.publishing import CANDIDATE, REPO, Scene, text_of

SETS = ("v6", "v7", "v8")


def dataset(scene: Scene, name: str) -> Repo:
    return scene.server.hub.store.repo("dataset", f"{REPO}-{name}")


def test_every_set_is_one_commit_and_a_tag(fresh: Scene) -> None:
    done = fresh.publish("pass", "--dataset")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{REPO}-{name} v8 {dataset(fresh, name).commit_of('v8')}" for name in SETS]
    for name in SETS:
        repo = dataset(fresh, name)
        files = {"README.md", "LICENSE", f"{name}.jsonl", f"{name}.manifest.json", "manifest.json", "provenance.json"}
        assert set(repo.files("v8")) == files | {".gitattributes"}
        assert repo.commit_of("main") == repo.commit_of("v8")
        assert text_of(repo, f"{name}.jsonl") == (fresh.root / f"pass/data/sets/{name}.jsonl").read_text("utf-8")
    assert fresh.server.faults.seen.count("commit") == len(SETS)
    assert set(fresh.repo.refs()["tags"]) == {"v8-candidate"}, "the model's own repo is left alone"
    fresh.server.faults.clear()
    done = fresh.publish("pass", "--dataset")
    assert (done.returncode, done.stderr.count("nothing to do")) == (0, len(SETS)), done.stderr
    assert not {"commit", "tag", "create-repo"} & set(fresh.server.faults.seen)


def test_the_card_counts_what_the_set_holds(fresh: Scene) -> None:
    assert fresh.publish("pass", "--dataset").returncode == 0
    cards = {name: text_of(dataset(fresh, name), "README.md") for name in SETS}
    front = yaml.safe_load(cards["v8"].split("---\n")[1])
    assert (front["license"], front["language"], front["size_categories"]) == ("mit", ["cs", "en"], ["n<1K"])
    assert front["configs"] == [{"config_name": "default", "data_files": "v8.jsonl"}]
    assert f'load_dataset("{REPO}-v8", split="train")' in cards["v8"]
    assert "| ethics | 3 |\n| all | 3 |" in cards["v8"]
    assert "| cs | 1 |\n| en | 2 |" in cards["v8"]
    below = "It is a layer on v7, with 0 rows added,\n1 replaced and 1 retired."
    assert below in cards["v8"]
    assert "It is a layer on v6, with 1 row added,\n0 replaced and 0 retired." in cards["v7"]
    assert "It is a layer on" not in cards["v6"]
    rows = text_of(dataset(fresh, "v8"), "v8.jsonl")
    assert hashlib.sha256(rows.encode()).hexdigest() in cards["v8"]
    assert CZECH in rows
    assert json.loads(text_of(dataset(fresh, "v8"), "v8.manifest.json"))["root_sha256"] in cards["v8"]


def test_the_model_card_names_the_datasets(fresh: Scene) -> None:
    assert fresh.publish("pass").returncode == 0
    card = fresh.card()
    assert yaml.safe_load(card.split("---\n")[1])["datasets"] == [f"{REPO}-v6", f"{REPO}-v8"]


def test_the_sets_of_a_release_that_failed_are_a_candidates(fresh: Scene) -> None:
    refused = fresh.publish("fail", "--dataset")
    assert refused.returncode == 3
    assert fresh.server.faults.seen == []
    assert fresh.publish("fail", "--dataset", *CANDIDATE).returncode == 0
    card = text_of(dataset(fresh, "v8"), "README.md")
    screen = card.split("\n# ")[1].splitlines()[:6]
    assert "**This is of a candidate, not of a release. The gate's verdict on its model is fail.**" in screen
    assert set(dataset(fresh, "v8").refs()["tags"]) == {"v8-candidate"}


def test_a_dry_run_lists_the_files_of_every_set(fresh: Scene) -> None:
    done = fresh.publish("pass", "--dataset", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert [name for name in SETS if f"{name}.jsonl\t" in done.stdout] == list(SETS)
    assert fresh.server.faults.seen == []


@pytest.mark.parametrize("change", ["edit", "remove"])
def test_a_set_that_is_not_the_releases_is_refused(fresh: Scene, tmp_path: Path, change: str) -> None:
    project = Path(shutil.copytree(fresh.root / "pass", tmp_path / "project"))
    rows = project / "data/sets/v7.jsonl"
    if change == "edit":
        rows.write_text(rows.read_text("utf-8").replace("2 and 2", "2 and 3"), "utf-8")
    else:
        rows.unlink()
    done = fresh.worker.karma("publish", "--repo", REPO, "--dataset", folder=project)
    assert done.returncode == 6
    assert "v7.jsonl: " in done.stderr.splitlines()[-1]
    assert fresh.server.faults.seen == []


@pytest.mark.parametrize("route", ["preupload", "tag"])
def test_a_fault_at_a_set_is_completed_by_the_next(fresh: Scene, route: str) -> None:
    assert fresh.publish("pass", "--dataset").returncode == 0
    whole = {name: dataset(fresh, name).files("v8") for name in SETS}
    fresh.reset("again")
    fresh.server.faults.planned.append(Fault("error", route))
    assert fresh.publish("pass", "--dataset").returncode == 2
    for name in SETS[1:]:
        assert not (fresh.server.hub.store.folder / f"repos/dataset/{REPO}-{name}").exists()
    fresh.server.faults.clear()
    done = fresh.publish("pass", "--dataset")
    assert done.returncode == 0, done.stderr
    assert {name: dataset(fresh, name).files("v8") for name in SETS} == whole


def test_a_signed_set_holds_as_it_was_signed(fresh: Scene, private_key: Path, tmp_path: Path) -> None:
    assert fresh.publish("pass", "--dataset", "--key", private_key).returncode == 0
    repo = dataset(fresh, "v8")
    for path in set(repo.files("v8")) - {".gitattributes"}:
        (tmp_path / "set").mkdir(exist_ok=True)
        shutil.copyfile(repo.folder / "blobs" / repo.files("v8")[path]["oid"], tmp_path / "set" / path)
    assert "v8.jsonl" in verify_signature(tmp_path / "set")
