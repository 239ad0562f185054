"""A build that was killed goes on and ends in the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.project import ALL_STAGES, Project

pytestmark = pytest.mark.pipeline

QUICK = ["merge", "calibrate-thresholds"]
OTHERS = sorted(ALL_STAGES - set(QUICK))


@pytest.mark.parametrize("stage", [*QUICK, *(pytest.param(stage, marks=pytest.mark.long) for stage in OTHERS)])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_build_killed_in_a_stage_ends_in_the_same_bytes(
    project: Project, built: Project, stage: str, sent: signal.Signals
) -> None:
    _kill_while_running(project, stage, sent)
    project.repro()
    assert project.outputs() == built.outputs()


def _kill_while_running(project: Project, stage: str, sent: signal.Signals) -> None:
    """Start the stage anew and kill it with its whole process group as soon as DVC says that it runs."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", stage],
        cwd=project.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=_heed_ctrl_c,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("> "):
            os.killpg(process.pid, sent)
            break
    assert process.wait() != 0


def _heed_ctrl_c() -> None:
    """A shell starts its background jobs with SIGINT ignored, and their children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
