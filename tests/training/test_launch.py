"""Several processes that train together: here two on a CPU, which talk through gloo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from karma_electric.adapters.files import read_adapter
from karma_electric.errors import InputError
from karma_electric.training.launch import RunSettings, must_launch, run_settings
from karma_electric.training.qlora import train_adapter
from tests.training.sets import examples, recipe, write_set

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = """
import sys
from pathlib import Path
from karma_electric.training.qlora import train_adapter
from tests.training.sets import recipe
base, train_set, output = map(Path, sys.argv[1:])
train_adapter(
    base, train_set, output / "adapter", params=recipe(), loss_curve=output / "curve.json", store=output / "store"
)
"""


def test_two_processes_make_the_adapter_of_one(tiny_llama: Path, tmp_path: Path) -> None:
    """Seven rows in steps of four: one process has a row less in a step, and takes part all the same."""
    train_set = write_set(tmp_path / "set.jsonl", examples(7))
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    finished = subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "bf16", "--dynamo_backend", "no", "--main_process_port", "0",
            str(script), str(tiny_llama), str(train_set), str(together),
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    metrics = train_adapter(tiny_llama, train_set, alone / "adapter", params=recipe(), loss_curve=alone / "curve.json")
    curves = [json.loads((folder / "curve.json").read_text()) for folder in (together, alone)]
    assert metrics["steps"] == len(curves[0]) == 4
    assert [point["loss"] for point in curves[0]] == pytest.approx([p["loss"] for p in curves[1]], rel=5e-3)
    adapters = [read_adapter(folder / "adapter") for folder in (together, alone)]
    assert adapters[0].modules.keys() == adapters[1].modules.keys()


def test_settings_come_from_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    local = tmp_path / "local.yaml"
    assert run_settings(local, {}) == RunSettings()
    local.write_text("launcher: accelerate\nprocesses: 4\nengine: elsewhere\n")
    assert run_settings(local, {}) == RunSettings(launcher="accelerate", processes=4)
    assert run_settings(local, {"KARMA_PROCESSES": "2"}).processes == 2
    assert not must_launch(run_settings(local, {"KARMA_LAUNCHER": "none"}), {})
    assert must_launch(run_settings(local, {}), {})
    assert not must_launch(run_settings(local, {}), {"RANK": "1"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [("launcher: mpi\n", "KARMA_LAUNCHER: "), ("processes: 0\n", "KARMA_PROCESSES: "), ("- a\n", "no keys")],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "local.yaml").write_text(text)
    with pytest.raises(InputError, match=fault):
        run_settings(tmp_path / "local.yaml", {})
