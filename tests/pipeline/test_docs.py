"""Every command in the documentation is run, or listed with the reason why it can't be."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from karma_electric.gate.params import GateParams
from karma_electric.gate.plan import all_checks
from karma_electric.parameters import read_section
from karma_electric.suites.items import read_suites
from tests.pipeline.project import REPOSITORY, Project

DOCUMENTS = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
_README = (REPOSITORY / "README.md").read_text("utf-8")
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
    metrics = json.loads((REPOSITORY / "metrics/gate.json").read_text("utf-8"))
    subset, whole = (_rows(part) for part in _README.split("    verdict: ")[:2])
    assert subset.keys() == whole.keys() == metrics["checks"].keys()
    for name, check in metrics["checks"].items():
        interval = f"{check['low']:.1%} to {check['high']:.1%}"
        shown = f"{check['passed']} of {check['n']} {interval} {check.get('verdict') or 'reported'}"
        assert subset[name].startswith(shown), f"README.md says of {name}: {subset[name]}"
    assert f"    verdict: {metrics['verdict']}\n" in _README


def test_the_readme_shows_the_gate_with_every_item() -> None:
    suites = read_suites(REPOSITORY / "data/suites")
    whole = _rows(_README.split("    verdict: ")[1])
    for check in all_checks(read_section(REPOSITORY / "params.yaml", "gate", GateParams)):
        assert f" of {len(check.items(suites))} " in whole[check.name]


def _rows(text: str) -> dict[str, str]:
    """By check, the lines of a gate's verdict, without their spaces."""
    found = (line.split() for line in text.splitlines() if re.search(r" of \d+ .*%", line))
    return {name: " ".join(rest) for name, *rest in found}


def test_every_listed_exception_is_in_the_documentation_and_has_a_reason() -> None:
    documented = set(_documented())
    for command, reason in _untested().items():
        assert command in documented, f"{command} stands in untested-commands.toml, but in no document"
        assert len(reason.split()) >= 3, f"{command} needs a reason"
