"""What holds for every command: help with an example, nothing heavy loaded, one line for a mistake."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from karma_electric.cli.main import app
from karma_electric.errors import KarmaError
from tests.cli.running import ROOT, karma, one_line_of

HEAVY = {
    "torch",
    "transformers",
    "numpy",
    "dvc",
    "pandas",
    "datasets",
    "peft",
    "trl",
    "gguf",
    "scipy",
    "huggingface_hub",
}


def commands_of(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command that does something."""
    below = getattr(command, "commands", None)
    if below is None:
        yield path
        return
    for name, inner in below.items():
        yield from commands_of(inner, (*path, name))


COMMANDS = sorted(commands_of(get_command(app)))


def test_the_commands_that_the_documents_name_are_there() -> None:
    assert {("check",), ("hash",), ("lock",), ("db", "import"), ("db", "stats"), ("chat",), ("serve",)} <= set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...], tmp_path: Path) -> None:
    done = karma(*words, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Example: karma {' '.join(words)}" in " ".join(done.stdout.split())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_has_help(words: tuple[str, ...]) -> None:
    command: Any = get_command(app)
    for word in words:
        command = command.commands[word]
    assert [each.name for each in command.params if not each.help] == []


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (("db", "export", "-o", "folder"), "folder"),
        (("db", "export", "-o", "file/rows.jsonl"), "file"),
        (("db", "dump", "-o", "file/rows.jsonl"), "file"),
        (("verify", "org/name", "--output", "file"), "file"),
    ],
    ids=" ".join,
)
def test_a_path_that_cannot_be_written_is_one_line(words: tuple[str, ...], path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("text\n")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/training.db").write_bytes((ROOT / "data/training.db").read_bytes())
    done = karma(*words, folder=tmp_path)
    assert one_line_of(done, 2 if "rows.jsonl" in words[-1] else 1).startswith(path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["data", "file", "folder"]


@pytest.mark.parametrize("words", [(), ("db",)], ids=" ".join)
def test_every_group_has_help(words: tuple[str, ...], tmp_path: Path) -> None:
    done = karma(*words, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Commands:" in done.stdout


def modules_after(*words: str) -> set[str]:
    """The top-level modules in memory after a command, from the interpreter's own list of imports."""
    command = [sys.executable, "-X", "importtime", "-m", "karma_electric.cli.main", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("words", [("--help",), ("db", "--help"), ("db", "stats"), ("check",)], ids=" ".join)
def test_nothing_heavy_is_imported(words: tuple[str, ...]) -> None:
    modules = modules_after(*words)
    assert {"typer", "karma_electric"} <= modules
    assert not modules & HEAVY


def test_the_help_imports_neither_pydantic_nor_yaml() -> None:
    assert not modules_after("--help") & {"pydantic", "yaml", "sqlite3"}


@pytest.mark.parametrize(
    "words",
    [
        ("no-such-command",),
        ("db", "stats", "--no-such-option"),
        ("db", "import"),
        ("db", "category", "a", "--limit", "0"),
    ],
)
def test_a_misspelt_command_is_no_traceback(words: tuple[str, ...], tmp_path: Path) -> None:
    done = karma(*words, folder=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Usage: karma" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_stage_started_with_other_options_ends_as_the_documents_say(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.merge", "--no-such-option"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")


def test_the_documents_list_every_exit_code_and_no_other() -> None:
    """Each once, the line of 2 with the command line that cannot be read; which code happens when is tested here."""
    text = (ROOT / "docs/architecture.md").read_text("utf-8").partition("## Exit codes\n")[2]
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ") and "code" not in line]
    meanings = {int(code): meaning.strip() for code, meaning in rows}
    assert [int(code) for code, _ in rows] == sorted({kind.exit_code for kind in KarmaError.__subclasses__()})
    assert "a command line that cannot be read" in meanings[2]


def test_a_fault_of_ours_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "from karma_electric.cli.main import app, main\n@app.command('boom')\ndef boom(): raise KeyError('x')\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "boom"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'x'" in done.stderr


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [("InputError", 1), ("SetupError", 2), ("GateFailedError", 3), ("GateInconclusiveError", 4), ("IntegrityError", 6)],
)
def test_a_mistake_is_one_line_with_its_exit_code(tmp_path: Path, kind: str, exit_code: int) -> None:
    code = (
        "from karma_electric import errors\nfrom karma_electric.cli.main import app, main\n"
        f"@app.command('fail')\ndef fail(): raise errors.{kind}('two\\nlines')\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fail"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (exit_code, "", "error: two lines\n")
