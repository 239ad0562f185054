"""What was built in this working tree, as a clone in which everything is committed, ready to be published."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.release.publish_project import commit, git
from tests.release.publish_worker import REPOSITORY


def shipped_clone(folder: Path) -> Path:
    """The tree's files as they are, and links to what was built. Fails where no release was built."""
    release = REPOSITORY / "models/release/manifest.json"
    assert release.is_file(), f"{release}: not built, and this is about the built release; run `make repro`"
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout.decode("utf-8")
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, folder / name)
    for name in ("models", "data/sets"):
        (folder / name).symlink_to(REPOSITORY / name)
    git(folder, "init", "-q", "-b", "main")
    commit(folder)
    return folder
