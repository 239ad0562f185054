"""What the Makefile does besides calling other tools."""

from __future__ import annotations

from pathlib import Path

from tests.pipeline.project import REPOSITORY, Project


def test_a_profile_replaces_the_recipe_and_refuses_over_uncommitted_edits(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    (project.folder / "profiles").mkdir(parents=True)
    for name in ("Makefile", "params.yaml", "profiles/llama31-8b.yaml"):
        (project.folder / name).write_bytes((REPOSITORY / name).read_bytes())
    (project.folder / "profiles/accelerate").mkdir()
    project.run("git", "init", "--quiet")
    project.commit()
    recipe = project.folder / "params.yaml"
    recipe.write_text(recipe.read_text("utf-8") + "# an edit\n")
    refused = project.run("make", "profile", "NAME=llama31-8b", ok=False)
    assert refused.returncode != 0
    assert "params.yaml has uncommitted edits" in refused.stderr
    assert recipe.read_text("utf-8").endswith("# an edit\n")
    project.run("git", "checkout", "--", "params.yaml")
    project.run("make", "profile", "NAME=llama31-8b")
    assert recipe.read_bytes() == (project.folder / "profiles/llama31-8b.yaml").read_bytes()
    missing = project.run("make", "profile", "NAME=nothing", ok=False)
    assert "profiles/nothing.yaml: missing; there are llama31-8b\n" in missing.stderr
