"""Where work in progress is kept: model answers, training checkpoints. No output of the graph is here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def working_store() -> Path:
    """KARMA_HOME, or `.karma` in the main working tree of this git repository; outside of git, in the current folder.

    A linked working tree shares the store of the main one. Deleting it costs time and changes no result.
    """
    told = os.environ.get("KARMA_HOME")
    if told:
        return Path(told).expanduser().resolve()
    found = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"], capture_output=True, text=True, check=False
    )
    folder = Path(found.stdout.strip()) if found.returncode == 0 else None
    main = folder.parent if folder is not None and folder.name == ".git" else Path.cwd()
    return main / ".karma"
