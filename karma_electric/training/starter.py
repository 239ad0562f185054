"""Whether the process that started this one still lives: an orphan must not go on and write outputs later."""

from __future__ import annotations

import os
from pathlib import Path

from karma_electric.errors import SetupError


class Starter:
    """The parent process; and, where that is a shell running one command for another, the process above it too.

    A shell outlives a killed `dvc repro`, so the parent alone does not tell. Without /proc only the parent is watched.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._above = _parent_of(self._parent) if _is_command_shell(self._parent) else None

    def is_alive(self) -> bool:
        """False once the parent, or the process above a shell, has ended."""
        if os.getppid() != self._parent:
            return False
        return self._above is None or _parent_of(self._parent) == self._above

    def require(self, work: str) -> None:
        """Raise SetupError, naming `work`, once the starter is gone."""
        if not self.is_alive():
            raise SetupError(f"{work}: the process that started it has ended; stopped, and nothing was written")


def _parent_of(pid: int) -> int | None:
    try:
        # The name, in parentheses, may hold spaces and parentheses itself; state and parent follow the last one.
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _is_command_shell(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"sh") and b"-c" in words[1:3]
