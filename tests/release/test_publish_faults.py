"""Whatever goes wrong at a request, the hub shows the old release or the new one, and the next publish completes it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.running import KARMA
from tests.hub_server.faults import Fault
from tests.hub_server.server import TOKEN
from tests.release.publish_worker import client_environment
from tests.release.publishing import REPO, Expected, Scene

KINDS = ("error", "unavailable", "refuse", "disk-full", "reset", "reset-body", "reset-answer", "cut-answer", "slow")


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


def test_an_error_at_every_kind_of_request_leaves_the_old_release_or_the_new(scene: Scene, expected: Expected) -> None:
    """At the first of each kind, and at the last request; at every one of them in the long tests."""
    numbers = [expected.routes.index(route) for route in dict.fromkeys(expected.routes)]
    codes = [strike(scene, expected, "error", number, None) for number in [*numbers, len(expected.routes) - 1]]
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
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("times", [1, None])
def test_every_fault_at_every_request(scene: Scene, expected: Expected, kind: str, times: int | None) -> None:
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
