"""A built release on its way: published to a hub over HTTP, verified by a stranger, and asked."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from karma_electric.canonical import read_json_object
from tests.cli.running import KARMA
from tests.hub_server.server import HubServer
from tests.release.publish_worker import client_environment
from tests.release.release_files import make_key

REPO = "org/model"
QUESTION = "My friend lost her job today. What may I say to her?\n"


@dataclass(frozen=True)
class Machine:
    """Somebody's machine: a home of its own, and the address of a hub."""

    home: Path
    server: HubServer

    def karma(self, *words: str | Path, folder: Path, said: str = "") -> subprocess.CompletedProcess[str]:
        environment = client_environment(self.server.url, self.home) | {"KARMA_HOME": str(self.home / "karma")}
        command = [str(KARMA), *map(str, words)]
        return subprocess.run(
            command, cwd=folder, env=environment, input=said, capture_output=True, text=True, check=False
        )


def check_plain_publish_refuses(project: Path, server: HubServer, home: Path, *, exit_code: int) -> None:
    """The built release's gate did not pass, so it is not published, and the hub is asked nothing."""
    done = Machine(home, server).karma("publish", "--repo", REPO, folder=project)
    assert done.returncode == exit_code, done.stderr
    assert "so nothing is published" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert server.faults.seen == []


def round_trip(project: Path, server: HubServer, folder: Path) -> str:
    """`project` publishes a candidate; from an empty folder somebody else fetches and verifies it, and asks it.

    What the fetched model, capped by the fetched axis, answers.
    """
    key, public = make_key(folder / "keys")
    gate = read_json_object(project / "models/release/gate.json")
    identity = read_json_object(project / "models/release/manifest.json")["identity"]
    tag = f"{identity['version']}-candidate"
    publish = ("publish", "--repo", REPO, "--candidate", "--reason", "to be looked at")
    done = Machine(folder / "publisher", server).karma(*publish, "--key", key, folder=project)
    assert done.returncode == 0, done.stderr
    repo = server.hub.store.repo("model", REPO)
    assert done.stdout == f"{REPO} {tag} {repo.commit_of(tag)}\n"

    stranger, empty = Machine(folder / "stranger", server), folder / "empty"
    empty.mkdir()
    verify = ("verify", REPO, "--gate", "--json", "--output", "release")
    done = stranger.karma(*verify, "--public-key", public, folder=empty)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["valid"], found["tag"], found["name"], found["judged_again"]) == (True, tag, identity["name"], True)
    assert found["verdict"] == gate["verdict"] != "pass"
    card = (empty / "release/README.md").read_text("utf-8")
    assert f"The gate's verdict is {gate['verdict']}.** Published because:\nto be looked at" in card

    weights, axis = (Path("release") / identity[name] for name in ("judged", "axis"))
    short = ("--max-tokens", "16", "--threads", "1")
    done = stranger.karma("chat", weights, "--acap", axis, *short, folder=empty, said=QUESTION)
    assert done.returncode == 0, done.stderr
    assert f"capped by {axis}: layers " in done.stderr
    assert done.stdout.endswith("\n")
    return done.stdout
