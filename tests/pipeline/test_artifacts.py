"""Model, axis and dataset as DVC's artifacts: tagged in GTO's form, pushed to a remote, and fetched by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.project import Project

pytestmark = pytest.mark.pipeline
FILES = {
    "model": "models/gguf/tiny-v8-Q8_0.gguf",
    "axis": "models/axis/bodhisattva_axis_v8.gguf",
    "dataset": "data/sets/v8.jsonl",
}


def address(project: Project) -> str:
    """As another machine would clone it: without the project's cache, so that bytes come from the remote."""
    return f"file://{project.folder}"


@pytest.fixture
def pushed(project: Project, tmp_path: Path) -> Project:
    """The built project, its outputs in a folder that is a remote, its artifacts tagged."""
    project.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.run("dvc", "remote", "modify", "store", "verify", "true")
    project.commit("a remote")
    project.run("dvc", "push")
    for name in FILES:
        project.run("git", "tag", "-a", f"{name}@v8.0.0", "-m", f"{name} of v8")
    return project


def test_artifacts_are_fetched_by_name_and_version(pushed: Project, tmp_path: Path) -> None:
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    for name, path in FILES.items():
        elsewhere.run("dvc", "artifacts", "get", address(pushed), name, "--rev", "v8.0.0", "--out", name)
        assert (elsewhere.folder / name).read_bytes() == (pushed.folder / path).read_bytes()
    (pushed.folder / "README.md").write_text("later")
    pushed.edit_recipe(release={"version": "v9"})
    pushed.commit("a later version, not built")
    elsewhere.run("dvc", "artifacts", "get", address(pushed), "model", "--out", "latest")
    latest = (elsewhere.folder / "latest").read_bytes()
    assert latest == (pushed.folder / FILES["model"]).read_bytes(), "a name alone is the last tagged version"


def test_a_flipped_bit_in_the_remote_is_not_handed_on(pushed: Project, tmp_path: Path) -> None:
    data = (pushed.folder / FILES["dataset"]).read_bytes()
    stored = next(path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.read_bytes() == data)
    stored.chmod(0o644)
    stored.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elsewhere = Project(tmp_path / "elsewhere")
    elsewhere.folder.mkdir()
    got = elsewhere.run("dvc", "artifacts", "get", address(pushed), "dataset", "--out", "rows.jsonl", ok=False)
    assert got.returncode != 0
    assert not (elsewhere.folder / "rows.jsonl").exists()
