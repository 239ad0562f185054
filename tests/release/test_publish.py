"""Publishing over real HTTP, by the hub's own client: whole or not at all, whatever goes wrong."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from karma_electric.canonical import read_json_object
from karma_electric.integrity import sha256_file
from tests.cli.running import KARMA
from tests.hub_server.faults import Fault
from tests.hub_server.server import TOKEN, HubServer, serve_hub
from tests.hub_server.store import Files, Repo, Store
from tests.release.publish_project import commit, git, make_project, write_lock
from tests.release.publish_worker import Worker, client_environment, worker

REPO = "org/tiny"
OTHER_KINDS = ("unavailable", "refuse", "disk-full", "reset", "reset-body", "reset-answer", "cut-answer", "slow")
CANDIDATE = ("--candidate", "--reason", "to look at three things")


@dataclass
class Scene:
    """A hub that shows a candidate, and projects whose releases may follow it."""

    server: HubServer
    worker: Worker
    root: Path
    environment: dict[str, str]

    @property
    def repo(self) -> Repo:
        return self.server.hub.store.repo("model", REPO)

    def publish(self, project: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.worker.karma("publish", "--repo", REPO, *words, folder=self.root / project)

    def reset(self, name: str) -> None:
        """The hub as it was when only the candidate was there."""
        folder = self.root / "hubs" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "hub-before", folder)
        self.server.hub.store = Store(folder)
        self.server.faults.clear()
        shutil.rmtree(self.root / "pass" / ".karma", ignore_errors=True)

    def main(self) -> Files:
        return self.repo.files("main")

    def tagged(self) -> Files | None:
        return self.repo.files("v8") if "v8" in self.repo.refs()["tags"] else None


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("publish")
    make_project(root / "fail", verdict="fail")
    make_project(root / "pass", seed=5)
    with serve_hub(root / "hub-before", chunk_bytes=256) as server:
        environment = client_environment(server.url, root / "home")
        with worker(environment) as asked:
            found = Scene(server, asked, root, environment)
            done = found.publish("fail", *CANDIDATE)
            assert done.returncode == 0, done.stderr
            yield found


@pytest.fixture
def fresh(scene: Scene, request: pytest.FixtureRequest) -> Scene:
    scene.reset(request.node.name.replace("/", "-")[:80])
    return scene


@dataclass
class Expected:
    """What main shows before and after a clean publish, and the requests that it takes."""

    before: Files
    after: Files
    routes: list[str]


@pytest.fixture(scope="module")
def expected(scene: Scene) -> Expected:
    scene.reset("clean")
    before = scene.main()
    done = scene.publish("pass")
    assert done.returncode == 0, done.stderr
    return Expected(before, scene.main(), list(scene.server.faults.seen))


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
    assert set(fresh.server.faults.seen) == {"refs", "tree"}


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
    card = (fresh.repo.folder / "blobs" / fresh.main()["README.md"]["oid"]).read_text("utf-8")
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


def test_an_edited_verdict_is_refused(fresh: Scene, tmp_path: Path) -> None:
    """Manifest, lock and commit were made to fit; the evidence still says what the model did."""
    project = Path(shutil.copytree(fresh.root / "fail", tmp_path / "project"))
    gate, manifest = (project / "models/release" / name for name in ("gate.json", "manifest.json"))
    gate.write_text(gate.read_text("utf-8").replace('"fail"', '"pass"'), "utf-8")
    described = read_json_object(manifest)
    entry = next(entry for entry in described["files"] if entry["path"] == "gate.json")
    entry |= {"sha256": sha256_file(gate), "size": gate.stat().st_size}
    manifest.write_text(json.dumps(described), "utf-8")
    write_lock(project)
    commit(project)
    assert "its evidence says 'fail'" in refusal(fresh, project, 6)


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


def test_a_tag_is_never_moved(fresh: Scene, tmp_path: Path) -> None:
    assert fresh.publish("pass").returncode == 0
    refs = fresh.repo.refs()
    make_project(tmp_path / "other", seed=6)
    done = fresh.worker.karma("publish", "--repo", REPO, folder=tmp_path / "other")
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


def check_whole(scene: Scene, expected: Expected) -> None:
    """Main is the old release or the new one, and the tag is not there or is the new one."""
    assert scene.main() in (expected.before, expected.after)
    assert scene.tagged() in (None, expected.after)


def check_completed(scene: Scene, expected: Expected) -> None:
    scene.server.faults.clear()
    done = scene.publish("pass")
    assert done.returncode == 0, done.stderr
    assert scene.main() == scene.tagged() == expected.after


def strike(scene: Scene, expected: Expected, kind: str, number: int, times: int | None) -> int:
    scene.reset("struck")
    scene.server.faults.planned.append(Fault(kind, number, times))
    done = scene.publish("pass")
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    check_whole(scene, expected)
    if done.returncode == 0:
        assert scene.tagged() == expected.after
    check_completed(scene, expected)
    return done.returncode


def test_an_error_at_every_request_leaves_the_old_release_or_the_new(scene: Scene, expected: Expected) -> None:
    codes = [strike(scene, expected, "error", number, None) for number in range(len(expected.routes))]
    assert set(codes) == {2}


@pytest.mark.parametrize("route", ["lfs-complete", "commit", "tag"])
def test_an_answer_that_is_lost_after_something_was_done(scene: Scene, expected: Expected, route: str) -> None:
    assert strike(scene, expected, "reset-answer", expected.routes.index(route), None) == 2


def test_a_repo_whose_making_was_not_answered_is_published_to(fresh: Scene) -> None:
    fresh.server.faults.planned.append(Fault("reset-answer", "create-repo", 1))
    assert fresh.publish("pass", "--repo", "org/new").returncode == 2
    done = fresh.publish("pass", "--repo", "org/new")
    assert done.returncode == 0, done.stderr
    assert set(fresh.server.hub.store.repo("model", "org/new").refs()["tags"]) == {"v8"}


@pytest.mark.long
@pytest.mark.parametrize("kind", OTHER_KINDS)
@pytest.mark.parametrize("times", [1, None])
def test_every_other_fault_at_every_request(scene: Scene, expected: Expected, kind: str, times: int | None) -> None:
    for number in range(len(expected.routes)):
        strike(scene, expected, kind, number, times)


@pytest.mark.parametrize(
    ("kind", "route", "times"),
    [("refuse", "commit", None), ("disk-full", "lfs-upload", None), ("reset-body", "lfs-part", None)],
)
def test_other_faults_where_they_are_likely(
    scene: Scene, expected: Expected, kind: str, route: str, times: int | None
) -> None:
    assert strike(scene, expected, kind, expected.routes.index(route), times) == 2


def test_an_upload_that_breaks_off_once_goes_on(scene: Scene, expected: Expected) -> None:
    assert strike(scene, expected, "reset-body", expected.routes.index("lfs-part"), 1) == 0


def test_somebody_elses_commit_is_not_written_over(fresh: Scene, expected: Expected) -> None:
    fresh.server.faults.planned.append(Fault("stale-parent", "commit", 1))
    done = fresh.publish("pass")
    assert done.returncode == 2, done.stderr
    assert "somebody else changed it" in done.stderr
    assert set(fresh.main()) == {*expected.before, "notes.txt"}
    assert fresh.tagged() is None
    check_completed(fresh, expected)


def killed_at(scene: Scene, kind: str, at: int | str) -> None:
    """Start a real `karma publish`, and kill it at a point of a request."""
    command = [str(KARMA), "publish", "--repo", REPO]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=scene.root / "pass", env=scene.environment, **pipes) as process:  # type: ignore[call-overload]
        scene.server.faults.planned.append(Fault(kind, at, 1, call=lambda: process.send_signal(signal.SIGKILL)))
        process.wait()


@pytest.mark.parametrize(("kind", "route"), [("call-body", "lfs-part"), ("call-answer", "commit")])
def test_a_killed_publish_is_completed_by_the_next(fresh: Scene, expected: Expected, kind: str, route: str) -> None:
    killed_at(fresh, kind, route)
    check_whole(fresh, expected)
    assert fresh.tagged() is None
    check_completed(fresh, expected)


@pytest.mark.long
@pytest.mark.parametrize("point", range(40))
def test_a_publish_killed_at_a_random_point(fresh: Scene, expected: Expected, point: int) -> None:
    chosen = random.Random(point)
    number = chosen.randrange(len(expected.routes))
    killed_at(fresh, chosen.choice(["call-before", "call-body", "call-answer"]), number)
    check_whole(fresh, expected)
    check_completed(fresh, expected)


def test_the_token_is_in_nothing_that_is_written(fresh: Scene, tmp_path: Path) -> None:
    """A real process, whose token is refused once, in words that repeat it, and taken the next time."""
    project = Path(shutil.copytree(fresh.root / "pass", tmp_path / "project"))
    environment = client_environment(fresh.server.url, tmp_path / "home")
    command = [str(KARMA), "publish", "--repo", REPO]
    lists: list[str] = []

    def look() -> None:
        found = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        lists.append(found)

    fresh.server.faults.planned += [Fault("call-before", "preupload", call=look), Fault("refuse", "commit", 1)]
    said = b""
    for code in (2, 0):
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, check=False)
        assert done.returncode == code, done.stderr
        said += done.stdout + done.stderr
    assert b"refused: Bearer ***" in said
    assert len(lists) == 2
    assert "publish --repo" in lists[0]
    assert TOKEN not in "".join(lists)
    assert TOKEN.encode() not in said
    written = [path for top in (tmp_path, fresh.server.hub.store.folder) for path in top.rglob("*") if path.is_file()]
    assert len(written) > 100
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


def test_without_a_token_nothing_is_asked(fresh: Scene, tmp_path: Path) -> None:
    environment = client_environment(fresh.server.url, tmp_path / "home", token=None)
    command = [str(KARMA), "publish", "--repo", REPO]
    done = subprocess.run(
        command, cwd=fresh.root / "pass", env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "set HF_TOKEN" in done.stderr
    assert fresh.server.faults.seen == []


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


def test_what_is_published_is_verified_from_an_empty_folder_and_yanked(fresh: Scene, key: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert fresh.publish("pass", "--key", key).returncode == 0
    published = fresh.tagged()
    done = fresh.worker.karma("verify", REPO, "--json", folder=tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["valid"], found["yanked"], found["version"], found["verdict"]) == (True, None, "v8", "pass")
    refused = fresh.publish("pass", "--yank", "v8", "--reason", "it lies")
    assert refused.returncode == 1
    assert "--key" in refused.stderr
    assert fresh.publish("pass", "--yank", "v7", "--reason", "x").returncode == 1
    for says in ("is yanked", "nothing to do"):
        done = fresh.publish("pass", "--yank", "v8", "--reason", "it lies", "--key", key)
        assert done.returncode == 0, done.stderr
        assert says in done.stderr
    assert fresh.tagged() == published
    assert set(fresh.main()) == {*published, "yanked.json"} if published else False
    for revision in ("v8", "main"):
        done = fresh.worker.karma("verify", REPO, "--revision", revision, "--json", folder=tmp_path / "empty")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["yanked"] == "it lies"
    assert "nothing to do" in fresh.publish("pass", "--key", key).stderr
    assert list((tmp_path / "empty").iterdir()) == []
