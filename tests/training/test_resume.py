"""A run that is killed, and what the next one does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from karma_electric.errors import SetupError
from karma_electric.training.checkpoints import CheckpointStore, open_store, run_key
from karma_electric.training.qlora import train_adapter
from tests.training.sets import examples, recipe, write_set

REPOSITORY = Path(__file__).parent.parent.parent
STEPS = 9  # 12 rows, 4 a step, 3 epochs
SCRIPT = """
import json, os, signal, sys
from pathlib import Path
import karma_electric.training.build
from karma_electric.training import trainer
from karma_electric.training.qlora import train_adapter
from tests.training.sets import recipe

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def train(base, train_set, folder, kill_step, where):
    save = trainer.torch.save
    def cut(state, buffer):
        if where == "saving" and len(state["curve"]) == kill_step:
            die()  # before a checkpoint is whole
        save(state, buffer)
    trainer.torch.save = cut
    def report(line):
        if where == "step" and f"step {kill_step} of" in line:
            die()
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj", "down_proj"]}
    train_adapter(base, train_set, folder / "out" / "adapter", params=recipe(epochs=3, lora=lora), report=report,
                  loss_curve=folder / "out" / "curve.json", store=folder / "store", checkpoint_every_step=True)

base, train_set = map(Path, sys.argv[1:3])
statuses = []
for folder, kill_step, where in json.loads(sys.argv[3]):
    process = os.fork()  # the libraries are loaded once
    if not process:
        train(base, train_set, Path(folder), kill_step, where)
        os._exit(0)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
print(json.dumps(statuses))
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_and_resume(base: Path, folder: Path, count: int) -> None:
    """One run that is left alone, and `count` that are killed, with SIGKILL, and run again."""
    drawn = random.Random(7)
    train_set = write_set(folder / "set.jsonl", examples())
    jobs: list[tuple[str, int, str]] = [(str(folder / "whole"), 0, "never")]
    for number in range(count):
        place = str(folder / f"{number}")
        jobs += [(place, drawn.randint(1, STEPS), drawn.choice(["step", "saving"])), (place, 0, "never")]
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(base), str(train_set), json.dumps(jobs)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert json.loads(finished.stdout) == [0, *[-signal.SIGKILL, 0] * count]
    expected = contents(folder / "whole" / "out")
    assert len(expected) == 4
    for number in range(count):
        assert contents(folder / f"{number}" / "out") == expected, jobs[1 + 2 * number]


def test_killed_at_any_step_the_next_run_ends_in_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    kill_and_resume(tiny_llama, tmp_path, 3)


@pytest.mark.long
def test_killed_at_thirty_points(tiny_llama: Path, tmp_path: Path) -> None:
    kill_and_resume(tiny_llama, tmp_path, 30)


def test_the_next_run_goes_on_and_a_damaged_checkpoint_is_not_used(tiny_llama: Path, tmp_path: Path) -> None:
    train_set = write_set(tmp_path / "set.jsonl", examples())
    store, lines = tmp_path / "store", list[str]()

    def run(name: str, **changes: object) -> bytes:
        output = tmp_path / name
        train_adapter(
            tiny_llama, train_set, output, params=recipe(**changes), loss_curve=tmp_path / "curve.json",
            report=lines.append, store=store, checkpoint_every_step=True,
        )  # fmt: skip
        return (output / "adapter_model.safetensors").read_bytes()

    whole = run("one")
    assert not any("goes on" in line for line in lines)
    assert run("two") == whole
    assert any("goes on after step 6" in line for line in lines)
    (newest,) = store.glob("*/step-00000006")
    damaged = bytearray((newest / "state.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "state.pt").write_bytes(damaged)
    lines.clear()
    assert run("three") == whole
    assert "damaged" in lines[1]
    assert "goes on after step 5" in lines[2]
    lines.clear()
    assert run("four", weight_decay=0.02) != whole  # another run, with checkpoints of its own
    assert not any("goes on" in line for line in lines)


def test_two_trainers_never_write_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from karma_electric.training import checkpoints

    monkeypatch.setattr(checkpoints, "_PATIENCE_SECONDS", 0.0)
    with open_store(tmp_path, "a" * 64, tmp_path / "out", print):
        for key, output, fault in (("a" * 64, "other", "trains the same"), ("b" * 64, "out", "writes .*out")):
            with (
                pytest.raises(SetupError, match=rf"process {os.getpid()} {fault}"),
                open_store(tmp_path, key, tmp_path / output, print),
            ):
                pass
        with open_store(tmp_path, "b" * 64, tmp_path / "other", print):
            pass
    with open_store(tmp_path, "a" * 64, tmp_path / "out", print):
        pass


def test_old_checkpoints_and_old_runs_are_removed(tmp_path: Path) -> None:
    for number in range(6):
        with open_store(tmp_path, f"{number}" * 64, tmp_path / "out", print) as store:
            for step in (1, 2, 3):
                with store.saving(step) as folder:
                    (folder / "state.pt").write_text("x")
            os.utime(store.folder, (number, number))
            assert [entry.name for entry in sorted(store.folder.iterdir())] == ["step-00000002", "step-00000003"]
            (store.folder / ".step-9.x.partial").mkdir()
    with open_store(tmp_path, "5" * 64, tmp_path / "out", print) as store:
        assert not list(store.folder.glob(".*"))
        newest = store.newest()
        assert newest is not None
        assert newest.name == "step-00000003"
    kept = sorted(entry.name[0] for entry in tmp_path.iterdir() if entry.name not in ("locks", "out"))
    assert kept == ["2", "3", "4", "5"]


def test_a_key_covers_its_content() -> None:
    assert run_key({"a": 1, "b": 2}) == run_key({"b": 2, "a": 1}) != run_key({"a": 1, "b": 3})


def test_saving_is_due_after_a_while(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path, print, every_step=True).is_due()
    assert not CheckpointStore(tmp_path, print).is_due()
