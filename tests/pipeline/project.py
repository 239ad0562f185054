"""A temporary clone of this repository that builds the real graph on a tiny random Llama."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
ALL_STAGES = {
    "fingerprint",
    "base",
    "export@v6",
    "export@v7",
    "export@v8",
    "train@v6",
    "train@v8",
    "interpolate",
    "merge",
    "quantize@Q8_0",
    "extract-axis",
    "calibrate-thresholds",
    "gate",
    "release",
}


@dataclass
class Project:
    """A clone at `folder`. `environment` is added to every command's."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the clone with this interpreter's environment first in PATH."""
        binaries = str(Path(sys.executable).parent)
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "GIT_AUTHOR_NAME": "test",
            "GIT_AUTHOR_EMAIL": "test@example.org",
            "GIT_COMMITTER_NAME": "test",
            "GIT_COMMITTER_EMAIL": "test@example.org",
            **self.environment,
        }
        result = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if ok:
            assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
        return result

    def repro(self, *arguments: str) -> set[str]:
        """`dvc repro`; the stages that ran."""
        return stages_run(self.run("dvc", "repro", *arguments).stdout)

    def commit(self, message: str = "change") -> None:
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--allow-empty", "-m", message)

    def edit_recipe(self, **sections: dict[str, Any]) -> None:
        """Change values of the recipe: `edit_recipe(gate={"confidence": 0.9})`."""
        path = self.folder / "params.yaml"
        recipe = yaml.safe_load(path.read_text("utf-8"))
        for section, values in sections.items():
            recipe[section].update(values)
        path.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True))

    def copy(self, folder: Path) -> Project:
        """The same project, built as far as it is, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, dict(self.environment))

    def outputs(self) -> dict[str, bytes]:
        """Every built file and its bytes, and the lock."""
        folders = ("models", "data/sets", "fingerprints", "metrics", "plots")
        files = [path for name in folders for path in (self.folder / name).rglob("*") if path.is_file()]
        files.append(self.folder / "dvc.lock")
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}


def stages_run(output: str) -> set[str]:
    """The stages that DVC says it ran."""
    return set(re.findall(r"^Running stage '([^']+)':", output, re.MULTILINE))


def clone(folder: Path, base: Path, base_sha256: str) -> Project:
    """This repository's files as they are in the working tree, committed, with the recipe set to the tiny model."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=REPOSITORY,
        capture_output=True,
        check=True,
    )
    built = ("dvc.lock", "metrics/", "plots/")
    for name in listed.stdout.decode("utf-8").split("\0"):
        if name and not name.startswith(built) and (REPOSITORY / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
    project = Project(folder)
    project.edit_recipe(
        release={"name": "tiny"},
        train={
            "examples": 8,
            "epochs": 1,
            "max_length": 2048,
            "sequences_per_step": 4,
            "tokens_per_microbatch": 2048,
            "learning_rate": 0.01,
        },
        quantize={"types": ["Q8_0"]},
        axis={"samples": 4, "max_prompt_tokens": 1024, "answer_tokens": 6},
        gate={"items_per_check": 1, "answer_tokens": 8},
    )
    recipe = yaml.safe_load((folder / "params.yaml").read_text("utf-8"))
    recipe["base"] = {
        "source": "folder",
        "path": str(base),
        "sha256": base_sha256,
        "repo": "test/tiny",
        "license": "apache-2.0",
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    project.run("git", "init", "--quiet", "--initial-branch", "main")
    project.commit("a clone with the tiny recipe")
    return project
