"""What may be published, and what a published repo then shows, over real HTTP, by the hub's own client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from karma_electric.canonical import read_json_object
from karma_electric.errors import IntegrityError
from karma_electric.graph import Stage, read_stages
from karma_electric.integrity import sha256_file
from karma_electric.parameters import read_yaml
from karma_electric.release.judging_code import JUDGING_CODE, judging_code_sha256
from karma_electric.release.staging import read_release, stage
from tests.cli.running import KARMA
from tests.release.publish_project import commit, git, make_project, write_lock
from tests.release.publish_worker import client_environment
from tests.release.publishing import CANDIDATE, REPO, Expected, Scene


def test_a_release_is_one_commit_and_a_tag(fresh: Scene, expected: Expected) -> None:
    before = fresh.repo.commit_of("main")
    done = fresh.publish("pass")
    assert (done.returncode, done.stdout) == (0, f"{REPO} v8 {fresh.repo.commit_of('v8')}\n"), done.stderr
    assert fresh.repo.commit_of("main") == fresh.repo.commit_of("v8")
    assert fresh.repo.commit(fresh.repo.commit_of("v8"))["parent"] == before
    manifest = read_json_object(fresh.root / "pass/models/release/manifest.json")
    names = {entry["path"] for entry in manifest["files"]}
    assert set(fresh.main()) == names | {"manifest.json", "provenance.json", ".gitattributes"}
    large = {entry["path"]: entry["sha256"] for entry in manifest["files"] if entry["path"].endswith(".gguf")}
    assert {path: fresh.main()[path]["sha256"] for path in large} == large
    assert {"lfs-part", "lfs-complete", "lfs-upload", "lfs-verify", "commit", "tag"} <= set(expected.routes)
    assert expected.routes.count("commit") == 1
    assert not list((fresh.root / "pass/.karma").rglob("*.gguf"))


def test_its_provenance_names_commit_lock_and_machine(fresh: Scene) -> None:
    assert fresh.publish("pass").returncode == 0
    blob = fresh.repo.folder / "blobs" / fresh.main()["provenance.json"]["oid"]
    provenance = json.loads(blob.read_text("utf-8"))
    assert provenance["commit"] == git(fresh.root / "pass", "rev-parse", "HEAD").strip()
    assert provenance["dvc_lock_sha256"] == sha256_file(fresh.root / "pass/dvc.lock")
    assert provenance[JUDGING_CODE] == judging_code_sha256()
    assert provenance["override"] is None
    assert os.uname().nodename not in blob.read_text("utf-8")


def test_repeated_there_is_nothing_to_do(fresh: Scene) -> None:
    assert fresh.publish("pass").returncode == 0
    published = fresh.repo.refs()
    fresh.server.faults.clear()
    done = fresh.publish("pass")
    assert done.returncode == 0
    assert "nothing to do" in done.stderr
    assert fresh.repo.refs() == published
    assert set(fresh.server.faults.seen) == {"refs", "tree", "resolve"}, "it only looked"


def test_a_dry_run_asks_the_hub_nothing(fresh: Scene) -> None:
    done = fresh.publish("pass", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "tiny-v8-Q8_0.gguf" in done.stdout
    assert fresh.server.faults.seen == []
    assert not (fresh.root / "pass/.karma").exists()


def test_a_release_whose_gate_failed_is_refused(fresh: Scene) -> None:
    done = fresh.publish("fail")
    assert done.returncode == 3, done.stderr
    assert "the gate's verdict is fail, so nothing is published" in done.stderr
    assert fresh.server.faults.seen == []


def test_an_inconclusive_release_is_refused(fresh: Scene, tmp_path: Path) -> None:
    make_project(tmp_path / "project", verdict="inconclusive")
    done = fresh.worker.karma("publish", "--repo", REPO, folder=tmp_path / "project")
    assert done.returncode == 4, done.stderr
    assert fresh.server.faults.seen == []


def test_a_candidate_says_so_on_its_first_screen(fresh: Scene) -> None:
    refs = fresh.repo.refs()
    assert set(refs["tags"]) == {"v8-candidate"}
    card = fresh.card()
    screen = " ".join(card.split("\n# ")[1].splitlines()[:12])
    assert "This is a candidate, not a release. The gate's verdict is fail." in screen
    assert "to look at three things" in screen
    done = fresh.publish("pass", *CANDIDATE)
    assert (done.returncode, fresh.repo.refs()) == (1, refs)
    assert "the gate's verdict is pass" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--candidate"], "--reason is missing"),
        (["--reason", "x"], "--reason goes with"),
        (["--candidate", "--reason", "  "], "--reason: 0 characters"),
        (["--yank", "v8", "--dry-run"], "--yank goes with"),
        (["--key", "key.pem", "--keyless"], "--key and --keyless"),
        (["--repo", "a/b/c"], "--repo: found 'a/b/c'"),
        (["--repo", "org/../x"], "--repo: found"),
    ],
)
def test_a_wrong_option_is_one_line(fresh: Scene, words: list[str], says: str) -> None:
    done = fresh.publish("pass", *words)
    assert done.returncode == 1
    assert says in done.stderr.splitlines()[-1]
    assert fresh.server.faults.seen == []


@pytest.fixture
def copied(fresh: Scene, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fresh.root / "pass", tmp_path / "project"))


def refusal(scene: Scene, folder: Path, code: int) -> str:
    done = scene.worker.karma("publish", "--repo", REPO, folder=folder)
    assert done.returncode == code, done.stderr
    assert scene.server.faults.seen == []
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["gguf/tiny-v8-Q8_0.gguf", "release/gate.md", "evidence/gate.jsonl"])
def test_a_changed_file_is_refused(fresh: Scene, copied: Path, name: str) -> None:
    path = copied / "models" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert name in refusal(fresh, copied, 6)


def test_a_missing_and_an_unnamed_file_are_refused(fresh: Scene, copied: Path) -> None:
    (copied / "models/release/notes.md").write_text("x", "utf-8")
    assert "notes.md: not in manifest.json" in refusal(fresh, copied, 6)
    (copied / "models/gguf/tiny-v8-Q4_K_M.gguf").unlink()
    assert "dvc repro quantize@Q4_K_M" in refusal(fresh, copied, 6)


def test_a_file_that_changes_after_it_was_checked_is_not_published(fresh: Scene, copied: Path, tmp_path: Path) -> None:
    release = read_release(copied / "models/release", built_from(copied), report=lambda _: None)
    weights = copied / "models/gguf/tiny-v8-Q8_0.gguf"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(IntegrityError, match=r"tiny-v8-Q8_0\.gguf: sha256 is .* in the copy, and was"):
        stage(release, tmp_path / "store", provenance={"override": None}, yanked=None, key=None, report=lambda _: None)
    assert list((tmp_path / "store").iterdir()) == []


def built_from(project: Path) -> list[Stage]:
    """The stages of the project's graph, whose outputs are found from any folder."""
    stages = read_stages(project / "dvc.yaml", read_yaml(project / "params.yaml"))
    return [replace(each, outputs=tuple(str(project / path) for path in each.outputs)) for each in stages]


@pytest.mark.parametrize(
    ("name", "verdict", "edited", "says"),
    [
        ("gate.json", '"fail"', '"pass"', "its evidence says 'fail'"),
        ("gate.md", "**fail**", "**pass**", "gate.md: not the report of this evidence"),
    ],
)
def test_an_edited_verdict_is_refused(
    fresh: Scene, tmp_path: Path, name: str, verdict: str, edited: str, says: str
) -> None:
    """Manifest, lock and commit were made to fit; the evidence still says what the model did."""
    project = Path(shutil.copytree(fresh.root / "fail", tmp_path / "project"))
    gate, manifest = (project / "models/release" / each for each in (name, "manifest.json"))
    assert verdict in gate.read_text("utf-8")
    gate.write_text(gate.read_text("utf-8").replace(verdict, edited), "utf-8")
    described = read_json_object(manifest)
    entry = next(entry for entry in described["files"] if entry["path"] == name)
    entry |= {"sha256": sha256_file(gate), "size": gate.stat().st_size}
    manifest.write_text(json.dumps(described), "utf-8")
    write_lock(project)
    commit(project)
    assert says in refusal(fresh, project, 6)


def test_uncommitted_work_is_refused(fresh: Scene, copied: Path) -> None:
    (copied / "new.txt").write_text("x", "utf-8")
    assert "new.txt: not committed" in refusal(fresh, copied, 1)
    (copied / "new.txt").unlink()
    lock = yaml.safe_load((copied / "dvc.lock").read_text("utf-8"))
    lock["stages"]["release"]["outs"][0]["md5"] = "0" * 32 + ".dir"
    (copied / "dvc.lock").write_text(yaml.safe_dump(lock), "utf-8")
    commit(copied)
    assert "describes another" in refusal(fresh, copied, 1)
    (copied / ".gitignore").write_text("/models\n/sets\n/dvc.lock\n", "utf-8")
    git(copied, "rm", "-q", "--cached", "dvc.lock")
    commit(copied)
    assert "dvc.lock: not committed" in refusal(fresh, copied, 1)


def test_a_tag_is_never_moved(fresh: Scene) -> None:
    """What has the tag already is the candidate, whose weights are others."""
    fresh.repo.set_tag("v8", "main")
    refs = fresh.repo.refs()
    done = fresh.publish("pass")
    assert done.returncode == 1
    assert "a tag is never moved; raise release.version" in done.stderr
    assert fresh.repo.refs() == refs


def test_a_repo_of_something_else_is_left_alone(fresh: Scene) -> None:
    repo = fresh.server.hub.store.create_repo("model", "org/other", private=False)
    repo.add_commit({"weights.bin": repo.add_blob(b"x")}, parent=None, title="x")
    refs = repo.refs()
    done = fresh.publish("pass", "--repo", "org/other")
    assert (done.returncode, repo.refs()) == (1, refs)
    assert "holds weights.bin and no release" in done.stderr


def test_private_is_never_public_by_mistake(fresh: Scene) -> None:
    done = fresh.publish("pass", "--private")
    assert done.returncode == 1
    assert "is public" in done.stderr
    assert fresh.publish("pass", "--private", "--repo", "org/secret").returncode == 0
    assert fresh.server.hub.store.repo("model", "org/secret").private


def test_without_a_token_nothing_is_asked(fresh: Scene, tmp_path: Path) -> None:
    environment = client_environment(fresh.server.url, tmp_path / "home", token=None)
    command = [str(KARMA), "publish", "--repo", REPO]
    done = subprocess.run(
        command, cwd=fresh.root / "pass", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "set HF_TOKEN" in done.stderr
    assert fresh.server.faults.seen == []
