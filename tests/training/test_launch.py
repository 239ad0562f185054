"""Several processes that train together: here two on a CPU, which talk through gloo."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from karma_electric.errors import InputError
from karma_electric.release.comparison import adapter_difference
from karma_electric.training.adapter_output import CONFIG_NAME, WEIGHTS_NAME
from karma_electric.training.launch import (
    RunSettings,
    check_accelerate_config,
    launch,
    launch_options,
    must_launch,
    run_settings,
    take_over_fsdp,
)
from karma_electric.training.qlora import train_adapter
from karma_electric.training.sharding import STORAGE
from tests.training.sets import examples, recipe, write_set

REPOSITORY = Path(__file__).parent.parent.parent
SCRIPT = """
import sys
from pathlib import Path
from karma_electric.training.qlora import train_adapter
from karma_electric.training.sharding import STORAGE
from tests.training.sets import recipe
base, train_set, output = map(Path, sys.argv[1:])
train_adapter(
    base, train_set, output / "adapter", params=recipe(tokens_per_microbatch=128, recomputed_share=0.5),
    loss_curve=output / "curve.json", report=print, store=output / "store", checkpoint_every_step=True,
)
"""
COPIES = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "bf16"]
COPIES += ["--dynamo_backend", "no", "--main_process_port", "0"]
SHARES = ["--config_file", str(REPOSITORY / "profiles/accelerate/fsdp.yaml")]


@pytest.fixture(scope="module")
def train_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven rows in steps of four: one process has a row less in a step, and takes part all the same."""
    return write_set(tmp_path_factory.mktemp("set") / "set.jsonl", examples(7))


def launched(options: list[str], base: Path, train_set: Path, output: Path) -> str:
    """What two processes print that train into `output`."""
    output.mkdir(exist_ok=True)
    script = output / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script)]
    finished = subprocess.run(
        [*command, str(base), str(train_set), str(output)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


@pytest.mark.parametrize("options", [COPIES, SHARES], ids=["copies", "shares"])
def test_two_processes_make_the_adapter_of_one(
    tiny_llama: Path, train_set: Path, tmp_path: Path, options: list[str]
) -> None:
    """Each with a copy of the model (DDP), or with a share of it (FSDP): the update is within 5% of one process's."""
    together, alone = tmp_path / "together", tmp_path / "alone"
    launched(options, tiny_llama, train_set, together)
    metrics = train_adapter(tiny_llama, train_set, alone / "adapter", params=recipe(), loss_curve=alone / "curve.json")
    curves = [json.loads((folder / "curve.json").read_text()) for folder in (together, alone)]
    assert metrics["steps"] == len(curves[0]) == 4
    assert [point["loss"] for point in curves[0]] == pytest.approx([p["loss"] for p in curves[1]], rel=5e-3)
    assert adapter_difference(alone / "adapter", together / "adapter") < 0.05
    configs = {(folder / "adapter" / CONFIG_NAME).read_bytes() for folder in (together, alone)}
    assert len(configs) == 1
    state = torch.load(max(together.glob("store/*/step-*")) / "state.pt", weights_only=True)
    # The optimizer's state is saved once for each share, and there is one where each has all of it.
    assert len(state["optimizer"]) == 2
    assert isinstance(state["optimizer"], list) == (options is SHARES)


def test_every_byte_of_a_sharded_weight_survives_a_copy_through_float32() -> None:
    """So torch._foreach_copy_ copies a 16-bit type on a GPU; other bytes would be other NF4 weights."""
    pairs = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    both = torch.stack([pairs, pairs.flip(0)], 1)  # with each pattern in either half of four bytes
    assert torch.equal(both.view(STORAGE).to(torch.float32).to(STORAGE).view(torch.int16), both)


@pytest.mark.long
def test_shares_go_on_from_a_checkpoint_and_end_in_the_same_bytes(
    tiny_llama: Path, train_set: Path, tmp_path: Path
) -> None:
    launched(SHARES, tiny_llama, train_set, tmp_path / "run")
    expected = (tmp_path / "run/adapter" / WEIGHTS_NAME).read_bytes()
    shutil.rmtree(tmp_path / "run/adapter")
    shutil.rmtree(max((tmp_path / "run").glob("store/*/step-*")))
    assert "goes on after step 3" in launched(SHARES, tiny_llama, train_set, tmp_path / "run")
    assert (tmp_path / "run/adapter" / WEIGHTS_NAME).read_bytes() == expected


def environment(**changes: str) -> dict[str, str]:
    """What accelerate sets of profiles/accelerate/fsdp.yaml, with changes."""
    asked = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
        "FSDP_OFFLOAD_PARAMS": "false",
        "FSDP_ACTIVATION_CHECKPOINTING": "false",
    }
    return asked | changes


def test_sharding_is_taken_over_from_accelerate() -> None:
    asked = environment()
    assert take_over_fsdp(asked)
    assert "ACCELERATE_USE_FSDP" not in asked
    assert not take_over_fsdp({})
    assert not take_over_fsdp({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"})


@pytest.mark.parametrize(
    ("key", "value", "variable"),
    [
        ("fsdp_version", "1", "FSDP_VERSION"),
        ("fsdp_offload_params", "true", "FSDP_OFFLOAD_PARAMS"),
        ("fsdp_transformer_layer_cls_to_wrap", "BertLayer", "FSDP_TRANSFORMER_CLS_TO_WRAP"),
    ],
)
def test_another_way_of_sharding_is_one_line(tmp_path: Path, key: str, value: str, variable: str) -> None:
    """In the file, before anything is launched; and in a process that was launched by hand."""
    shipped = Path(SHARES[1])
    check_accelerate_config(shipped)
    changed = tmp_path / "fsdp.yaml"
    changed.write_text(re.sub(rf"{key}: \S+", f"{key}: {value}", shipped.read_text()))
    told = rf"{key} is {value}, training expects .*; take profiles/accelerate/fsdp\.yaml"
    with pytest.raises(InputError, match=f"fsdp.yaml: {told}"):
        launch(RunSettings(launcher="accelerate", accelerate_config=str(changed)), "no.module", [])
    asked = environment(**{variable: value})
    with pytest.raises(InputError, match=f"accelerate: {told}"):
        take_over_fsdp(asked)
    assert asked["ACCELERATE_USE_FSDP"] == "true"


def test_a_file_of_accelerate_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: cannot be read"):
        check_accelerate_config(tmp_path / "gone.yaml")
    (tmp_path / "other.yaml").write_text("distributed_type: MULTI_GPU\n")
    check_accelerate_config(tmp_path / "other.yaml")


def test_the_number_of_processes_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "local.yaml").write_text("launcher: accelerate\naccelerate_config: f.yaml\nprocesses: 4\n")
    settings = run_settings(tmp_path / "local.yaml", {})
    assert launch_options(settings) == ["--config_file", "f.yaml", "--num_processes", "4"]


def test_settings_come_from_the_file_and_the_environment_wins(tmp_path: Path) -> None:
    local = tmp_path / "local.yaml"
    assert run_settings(local, {}) == RunSettings()
    local.write_text("launcher: accelerate\nprocesses: 4\n")
    assert run_settings(local, {}) == RunSettings(launcher="accelerate", processes=4)
    assert run_settings(local, {"KARMA_PROCESSES": "2"}).processes == 2
    assert not must_launch(run_settings(local, {"KARMA_LAUNCHER": "none"}), {})
    assert must_launch(run_settings(local, {}), {})
    assert not must_launch(run_settings(local, {}), {"RANK": "1"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("launcher: mpi\n", "launcher: found 'mpi'"),
        ("processes: 0\n", "processes: found 0"),
        ("processs: 8\n", "processs: unknown key"),
        ("- a\n", "found a list"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "local.yaml").write_text(text)
    with pytest.raises(InputError, match=fault):
        run_settings(tmp_path / "local.yaml", {})
