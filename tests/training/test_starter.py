"""Orphans, with real process trees: a parent is killed and reaped before its child is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from karma_electric.training.starter import Starter

CHILD = """
from karma_electric.training.starter import Starter
starter = Starter()
with open({answers}, "w") as answers:
    print(starter.is_alive(), file=answers, flush=True)
    with open({questions}) as questions:
        questions.readline()
        print(starter.is_alive(), file=answers, flush=True)
"""
PARENT = """
import subprocess, sys
subprocess.run({command!r})
"""


def test_a_process_with_its_parent_is_no_orphan() -> None:
    starter = Starter()
    assert starter.is_alive()
    starter.require("train")


@pytest.fixture
def pipes(tmp_path: Path) -> tuple[Path, Path]:
    answers, questions = tmp_path / "answers", tmp_path / "questions"
    os.mkfifo(answers)
    os.mkfifo(questions)
    return answers, questions


@pytest.mark.parametrize("shell", [False, True], ids=["its parent", "the process above its shell"])
def test_an_orphan_knows(pipes: tuple[Path, Path], shell: bool) -> None:
    answers, questions = pipes
    child = [sys.executable, "-c", CHILD.format(answers=repr(str(answers)), questions=repr(str(questions)))]
    command = ["sh", "-c", '"$@"; true', "sh", *child] if shell else child
    parent = subprocess.Popen([sys.executable, "-c", PARENT.format(command=command)])
    with answers.open() as heard:
        assert heard.readline() == "True\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        questions.write_text("now?\n")
        assert heard.readline() == "False\n"
