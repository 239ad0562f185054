"""Whether the process that started this one still lives: an orphan must not go on and write outputs later."""

from __future__ import annotations

import os
from pathlib import Path

from karma_electric.errors import SetupError

LAUNCHER_VARIABLE = "KARMA_LAUNCHED_BY"


class Starter:
    """The parent process; and, where that is a shell running one command for another, the process above it too.

    A shell outlives a killed `dvc repro`, so the parent alone does not tell. Without /proc only the parent is watched.
    Where several processes train, the one that launched them is watched, too: it names itself in LAUNCHER_VARIABLE.
    """

    def __init__(self) -> None:
        self._parent = os.getppid()
        self._above = _parent_of(self._parent) if _is_command_shell(self._parent) else None
        self._launcher = os.environ.get(LAUNCHER_VARIABLE)

    def is_alive(self) -> bool:
        """False once the parent, the process above a shell, or the launcher has ended."""
        if os.getppid() != self._parent or (self._launcher and not _is_running(self._launcher)):
            return False
        return self._above is None or _parent_of(self._parent) == self._above

    def require(self, work: str) -> None:
        """Raise SetupError, naming `work`, once the starter is gone."""
        if not self.is_alive():
            raise SetupError(f"{work}: the process that started it has ended; stopped, and nothing was written")


def process_name() -> str:
    """This process, for LAUNCHER_VARIABLE: its number and when it started, since numbers are used again."""
    return f"{os.getpid()}:{_stat(os.getpid(), 19)}"


def _is_running(name: str) -> bool:
    pid, _, started = name.partition(":")
    return started == "None" or (pid.isdecimal() and str(_stat(int(pid), 19)) == started)


def _parent_of(pid: int) -> int | None:
    return _stat(pid, 1)


def _stat(pid: int, field: int) -> int | None:
    """A number in /proc/<pid>/stat, counted from the state, which is 0."""
    try:
        # The name, in parentheses, may hold spaces and parentheses itself; the state follows the last one.
        return int(Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace").rpartition(")")[2].split()[field])
    except (OSError, ValueError, IndexError):
        return None


def _is_command_shell(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"sh") and b"-c" in words[1:3]
