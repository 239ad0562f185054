from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_server.server import serve_hub
from tests.release.publish_project import make_project
from tests.release.publish_worker import client_environment, worker
from tests.release.publishing import CANDIDATE, Expected, Scene


@pytest.fixture(scope="session")
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


@pytest.fixture(scope="session")
def expected(scene: Scene) -> Expected:
    scene.reset("clean")
    before = scene.main()
    done = scene.publish("pass")
    assert done.returncode == 0, done.stderr
    return Expected(before, scene.main(), list(scene.server.faults.seen))


@pytest.fixture
def private_key(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path
