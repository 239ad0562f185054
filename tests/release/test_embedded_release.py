"""The release that `make repro` builds from the shipped recipe is published as it is; `.ci/run` asks for it.

It needs that build, and fails without one. `make test` does the same with a tiny model: tests/pipeline/test_publish.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from karma_electric.canonical import read_json_object
from tests.hub_server.server import serve_hub
from tests.release.round_trip import check_plain_publish_refuses, round_trip
from tests.release.shipped import shipped_clone

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shipped_clone(tmp_path_factory.mktemp("shipped") / "clone")


def test_its_gate_fails_so_a_plain_publish_refuses(shipped: Path, tmp_path: Path) -> None:
    assert read_json_object(shipped / "metrics/gate.json")["verdict"] == "fail"
    with serve_hub(tmp_path / "hub") as server:
        check_plain_publish_refuses(shipped, server, tmp_path / "home", exit_code=3)


def test_its_candidate_is_published_verified_from_an_empty_folder_and_asked(shipped: Path, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "hub") as server:
        assert len(round_trip(shipped, server, tmp_path).split()) > 3
