"""The working store lies in the main working tree, whichever worktree asks, or where KARMA_HOME says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from karma_electric.working_store import working_store


def git(*arguments: str, cwd: Path) -> None:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KARMA_HOME", raising=False)


def test_a_worktree_uses_the_store_of_its_main_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main, other = tmp_path / "main", tmp_path / "other"
    main.mkdir()
    git("init", "--quiet", cwd=main)
    git("commit", "--allow-empty", "-qm", "first", cwd=main)
    git("worktree", "add", "--quiet", str(other), cwd=main)
    (main / "deep").mkdir()
    for folder in (main, main / "deep", other):
        monkeypatch.chdir(folder)
        assert working_store("answers") == main / ".karma" / "answers"


def test_without_git_it_lies_in_the_folder_that_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert working_store("answers") == tmp_path / ".karma" / "answers"


def test_the_environment_can_name_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KARMA_HOME", str(tmp_path / "home"))
    assert working_store("checkpoints") == tmp_path / "home" / "checkpoints"
