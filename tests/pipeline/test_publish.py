"""What the real graph built on a tiny model is published over HTTP, verified by a stranger, and asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from karma_electric.canonical import read_json_object
from tests.hub_server.server import serve_hub
from tests.pipeline.project import Project
from tests.release.round_trip import check_plain_publish_refuses, round_trip

pytestmark = pytest.mark.pipeline
EXIT_CODES = {"fail": 3, "inconclusive": 4}


def test_a_plain_publish_refuses(built: Project, tmp_path: Path) -> None:
    verdict = read_json_object(built.folder / "metrics/gate.json")["verdict"]
    with serve_hub(tmp_path / "hub") as server:
        check_plain_publish_refuses(built.folder, server, tmp_path / "home", exit_code=EXIT_CODES[verdict])


def test_a_candidate_is_published_verified_from_an_empty_folder_and_asked(built: Project, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "hub") as server:
        round_trip(built.folder, server, tmp_path)
