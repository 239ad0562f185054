"""Where work is kept that can be done again: model answers and training checkpoints, which are outputs of no stage.

The folder is `.karma/` of the main working tree, so that a temporary experiment in a worktree finds what was computed
before; or the folder that KARMA_HOME names. A build gives the same bytes with the folder deleted.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

FOLDER_NAME = ".karma"
HOME_VARIABLE = "KARMA_HOME"


def working_store(name: str) -> Path:
    """The folder for one kind of work. It may not exist yet."""
    return _home() / name


def _home() -> Path:
    if home := os.environ.get(HOME_VARIABLE):
        return Path(home).expanduser().resolve()
    return _main_working_tree(Path.cwd()) / FOLDER_NAME


def _main_working_tree(asking: Path) -> Path:
    """The tree that holds the repository's .git folder, also from one of its worktrees; without git, `asking`."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"],
            cwd=asking,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return asking
    folder = Path(found.stdout.strip())
    return folder.parent if folder.name == ".git" else asking
