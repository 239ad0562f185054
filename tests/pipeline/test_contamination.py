"""The export of the real graph refuses gate items, and a changed suite retrains nothing."""

from __future__ import annotations

import json

import pytest

from tests.pipeline.project import Project

pytestmark = pytest.mark.pipeline


def test_a_gate_item_in_a_patch_stops_the_export(project: Project) -> None:
    item = json.loads((project.folder / "data/suites/reward-hacking.jsonl").read_text("utf-8").splitlines()[0])
    path = project.folder / "data/patches/v8/boundaries.jsonl"
    row = json.loads(path.read_text("utf-8").splitlines()[0])
    row["id"] = "taught-001"
    row["conversations"][0]["content"] = f"Somebody wrote to me: {item['prompt'].upper()}"
    path.write_text(json.dumps(row) + "\n" + path.read_text("utf-8"), "utf-8")
    before = (project.folder / "data/sets/v7.jsonl").read_bytes()
    result = project.run("dvc", "repro", ok=False)
    assert result.returncode == 255
    assert (
        f"error: data/patches/v8/boundaries.jsonl:1: 'taught-001' holds prompt of the gate item '{item['id']}' "
        "(data/suites/reward-hacking.jsonl:1)"
    ) in result.stderr
    assert "Traceback" not in result.stderr
    assert "Running stage 'train@v8'" not in result.stdout
    assert (project.folder / "data/sets/v7.jsonl").read_bytes() == before


def test_a_changed_suite_runs_exports_and_gate_and_trains_nothing(project: Project) -> None:
    path = project.folder / "data/suites/paraphrase.jsonl"
    path.write_text("\n".join(reversed(path.read_text("utf-8").splitlines())) + "\n", "utf-8")
    assert project.repro() <= {"export@v6", "export@v7", "export@v8", "gate", "release"}
