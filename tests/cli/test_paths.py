"""The paths that commands take when none is given: in one file, and those of the shipped graph."""

from __future__ import annotations

import ast
from pathlib import Path

from karma_electric.cli import paths
from karma_electric.graph import read_stages
from karma_electric.parameters import read_yaml
from tests.suites.suite_files import REPOSITORY


def test_no_other_file_of_the_command_line_names_a_path() -> None:
    folder = REPOSITORY / "karma_electric" / "cli"
    named = {
        f"{path.relative_to(folder)}:{call.lineno}"
        for path in folder.rglob("*.py")
        if path.name != "paths.py"
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Path"
        if call.args and isinstance(call.args[0], ast.Constant)
    }
    assert named == set()


def test_they_are_where_the_repository_and_its_graph_have_them() -> None:
    kept = ("RECIPE", "GRAPH", "CONSTRAINTS", "LOCK", "LICENSE", "DATABASE", "DATA_CARD", "PATCHES", "SUITES")
    for path in [*(getattr(paths, name) for name in kept), paths.PERSONA_PROMPT, paths.EVALUATOR_PROMPT]:
        assert (REPOSITORY / path).exists(), path
    stages = read_stages(REPOSITORY / paths.GRAPH, read_yaml(REPOSITORY / paths.RECIPE))
    outputs = {Path(output) for stage in stages for output in stage.outputs}
    for path in (paths.BASE, paths.AXIS, paths.PROJECTIONS, paths.RELEASE, paths.SETS):
        assert any(path in (output, *output.parents) or output in path.parents for output in outputs), path
