"""A run that is killed, and what the next one does."""

from __future__ import annotations

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
import os, signal, sys
from pathlib import Path
from karma_electric.training import trainer
from karma_electric.training.qlora import train_adapter
from tests.training.sets import recipe
base, train_set, output, store = map(Path, sys.argv[1:5])
kill_step, where = int(sys.argv[5]), sys.argv[6]
lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["q_proj", "v_proj", "down_proj"]}

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "saving":  # between a checkpoint's files
    save = trainer.torch.save
    def cut(state, buffer):
        if len(state["curve"]) == kill_step:
            die()
        save(state, buffer)
    trainer.torch.save = cut
def report(line):
    if where == "step" and f"step {kill_step} " in line:
        die()
train_adapter(base, train_set, output / "adapter", params=recipe(epochs=3, lora=lora), loss_curve=output / "curve.json",
              report=report, store=store, checkpoint_every_step=True)
"""


def train(folder: Path, base: Path, train_set: Path, store: Path, kill_step: int = 0, where: str = "step") -> int:
    folder.mkdir(exist_ok=True)
    arguments = [str(base), str(train_set), str(folder), str(store), str(kill_step), where]
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        check=False,
    ).returncode


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def uninterrupted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("whole")
    train_set = write_set(folder / "set.jsonl", examples())
    assert train(folder / "out", tiny_llama, train_set, folder / "store") == 0
    return train_set, contents(folder / "out")


def kills(count: int) -> list[tuple[int, str]]:
    drawn = random.Random(7)
    return [(drawn.randint(1, STEPS), drawn.choice(["step", "saving"])) for _ in range(count)]


def killed_and_resumed(
    tiny_llama: Path, tmp_path: Path, uninterrupted: tuple[Path, dict[str, bytes]], step: int, where: str
) -> None:
    train_set, expected = uninterrupted
    assert train(tmp_path / "out", tiny_llama, train_set, tmp_path / "store", step, where) == -signal.SIGKILL
    assert contents(tmp_path / "out") == {}
    assert train(tmp_path / "out", tiny_llama, train_set, tmp_path / "store") == 0
    assert contents(tmp_path / "out") == expected


@pytest.mark.parametrize(("step", "where"), kills(3))
def test_killed_at_any_step_the_next_run_ends_in_the_same_bytes(
    tiny_llama: Path, tmp_path: Path, uninterrupted: tuple[Path, dict[str, bytes]], step: int, where: str
) -> None:
    killed_and_resumed(tiny_llama, tmp_path, uninterrupted, step, where)


@pytest.mark.long
@pytest.mark.parametrize(("step", "where"), kills(30)[3:])
def test_killed_at_thirty_points(
    tiny_llama: Path, tmp_path: Path, uninterrupted: tuple[Path, dict[str, bytes]], step: int, where: str
) -> None:
    killed_and_resumed(tiny_llama, tmp_path, uninterrupted, step, where)


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
    (newest,) = store.glob("training/*/step-00000006")
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
