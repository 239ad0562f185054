"""Every command in the documentation is run, or listed with the reason why it can't be."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.pipeline.project import REPOSITORY, Project

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _commands(document: Path) -> list[str]:
    """The commands of the shell blocks: one a line, continued by a backslash, comments left out."""
    found = []
    for block in _BLOCK.findall(document.read_text("utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+#.*$", "", line).strip()
            if command and not command.startswith("#"):
                found.append(re.sub(r"\s+", " ", command))
    return found


def _untested() -> dict[str, str]:
    listed = tomllib.loads((REPOSITORY / "docs/untested-commands.toml").read_text("utf-8"))
    return {entry["command"]: entry["reason"] for entry in listed["command"]}


def _documented() -> list[str]:
    return [command for document in DOCUMENTS for command in _commands(document)]


@pytest.mark.pipeline
def test_every_documented_command_runs(project: Project) -> None:
    untested = _untested()
    commands = [command for command in dict.fromkeys(_documented()) if command not in untested]
    assert commands, "the documentation shows no command that a test can run"
    for command in commands:
        project.run("bash", "-c", command)


def test_every_listed_exception_is_in_the_documentation_and_has_a_reason() -> None:
    documented = set(_documented())
    for command, reason in _untested().items():
        assert command in documented, f"{command} stands in untested-commands.toml, but in no document"
        assert len(reason.split()) >= 3, f"{command} needs a reason"
