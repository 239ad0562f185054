"""A hub, projects whose releases may be published to it, and the process that publishes them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.hub_server.server import HubServer
from tests.hub_server.store import Files, Repo, Store
from tests.release.publish_worker import Worker

REPO = "org/tiny"
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

    def card(self) -> str:
        """Of main."""
        return text_of(self.repo, "README.md")

    def main(self) -> Files:
        return self.repo.files("main")

    def tagged(self) -> Files | None:
        return self.repo.files("v8") if "v8" in self.repo.refs()["tags"] else None


def text_of(repo: Repo, path: str) -> str:
    """A small file of main."""
    return Path(repo.folder / "blobs" / repo.files("main")[path]["oid"]).read_text("utf-8")


@dataclass
class Expected:
    """What main shows before and after a clean publish, and the requests that it takes."""

    before: Files
    after: Files
    routes: list[str]
