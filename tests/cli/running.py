"""The real `karma`, in a process of its own or in this one."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest import mock

from typer.testing import CliRunner

from karma_electric.cli.main import app
from karma_electric.errors import KarmaError

ROOT = Path(__file__).parent.parent.parent
KARMA = Path(sys.executable).with_name("karma")


def karma(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `karma` in `folder`."""
    command = [str(KARMA), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def karma_here(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `karma` in `folder` within this process, which is quicker: for what needs no process of its own."""
    from karma_electric.cli.main import main

    words = ["karma", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    exit_code: object = 0
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with mock.patch.object(sys, "argv", words):
                main()
        except SystemExit as end:
            exit_code = end.code or 0
    assert isinstance(exit_code, int)
    return subprocess.CompletedProcess(words, exit_code, out.getvalue(), err.getvalue())


def one_line_of(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """The one line that a command said on stderr, after `error: `. Fails for a traceback or another exit code."""
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""
    return done.stderr.removeprefix("error: ").rstrip("\n")


def refused(*arguments: str | Path) -> str:
    """The error of a command that is run in this process and folder, which is quicker."""
    error = CliRunner().invoke(app, [*map(str, arguments)]).exception
    assert isinstance(error, KarmaError), repr(error)
    return str(error)
