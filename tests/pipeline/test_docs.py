"""Every command in the documentation is run, or listed with the reason why it can't be."""

from __future__ import annotations

import json
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


def test_the_readme_shows_the_gate_of_the_committed_metrics() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    metrics = json.loads((REPOSITORY / "metrics/gate.json").read_text("utf-8"))
    rows = {
        line.split()[0]: " ".join(line.split()[1:]) for line in readme.splitlines() if re.search(r" of \d+ .*%", line)
    }
    assert rows.keys() >= metrics["checks"].keys()
    for name, check in metrics["checks"].items():
        interval = f"{check['low']:.1%} to {check['high']:.1%}"
        shown = f"{check['passed']} of {check['n']} {interval} {check.get('verdict') or 'reported'}"
        assert rows[name].startswith(shown), f"README.md says of {name}: {rows[name]}"
    assert f"    verdict: {metrics['verdict']}\n" in readme


def test_every_listed_exception_is_in_the_documentation_and_has_a_reason() -> None:
    documented = set(_documented())
    for command, reason in _untested().items():
        assert command in documented, f"{command} stands in untested-commands.toml, but in no document"
        assert len(reason.split()) >= 3, f"{command} needs a reason"
