"""The same on huggingface.co, which needs a token that may write and a name to write to.

HF_TOKEN=... KARMA_SCRATCH_REPO=me/scratch python -m pytest tests/release/test_real_hub.py

It makes private repos whose names begin with that name and end with one that it draws, and deletes them again.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import KARMA
from tests.release.publish_project import SETS, make_project
from tests.release.publish_worker import REPOSITORY

TOKEN, SCRATCH = os.environ.get("HF_TOKEN"), os.environ.get("KARMA_SCRATCH_REPO")
pytestmark = pytest.mark.skipif(
    not (TOKEN and SCRATCH), reason="the real hub: set HF_TOKEN and KARMA_SCRATCH_REPO=ORG/NAME to publish there"
)
DELETE = "import sys; from huggingface_hub import HfApi; HfApi().delete_repo(sys.argv[1], repo_type=sys.argv[2])"


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_ENDPOINT")}
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[str]:
    """A name that nobody has. What the test made under it is deleted."""
    name = f"{SCRATCH}-{secrets.token_hex(8)}"
    yield name
    made = [(name, "model"), *((f"{name}-{each}", "dataset") for each in SETS)]
    left = [each for each in made if run(sys.executable, "-c", DELETE, *each, folder=tmp_path).returncode]
    assert left == [], "these repos could not be deleted, or were never made"


def test_a_release_goes_to_the_hub_and_back(repo: str, private_key: Path, tmp_path: Path) -> None:
    project, empty = make_project(tmp_path / "project"), tmp_path / "empty"
    empty.mkdir()
    publish = (KARMA, "publish", "--repo", repo, "--key", private_key)
    for words in ((), ("--dataset",)):
        for says in ("v8 is published\n", "nothing to do"):
            done = run(*publish, "--private", *words, folder=project)
            assert done.returncode == 0, done.stderr
            assert says in done.stderr
            assert str(TOKEN) not in done.stdout + done.stderr
    done = run(KARMA, "verify", repo, "--revision", "v8", folder=empty)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid\n")
    done = run(*publish, "--yank", "v8", "--reason", "a test", folder=project)
    assert done.returncode == 0, done.stderr
    done = run(KARMA, "verify", repo, "--revision", "v8", folder=empty)
    assert done.stdout.startswith("valid, yanked: a test\n"), done.stderr
