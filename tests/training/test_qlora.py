"""Real runs of trl, peft and bitsandbytes on a tiny Llama."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from karma_electric.adapters.files import read_adapter
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import MANIFEST_NAME, sha256_file, verify_manifest
from karma_electric.training.qlora import train_adapter
from tests.hub_server.server import serve_hub
from tests.training.sets import examples, recipe, write_set

REPOSITORY = Path(__file__).parent.parent.parent


class Run(NamedTuple):
    base: Path
    train_set: Path
    output: Path
    curve: Path
    metrics: dict[str, Any]
    lines: list[str]


@pytest.fixture(scope="module")
def run(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    train_set = write_set(folder / "v6.jsonl", examples())
    lines: list[str] = []
    output, curve = folder / "adapter", folder / "curve.json"
    params = recipe(epochs=8, examples=10)
    metrics = train_adapter(tiny_llama, train_set, output, params=params, loss_curve=curve, report=lines.append)
    return Run(tiny_llama, train_set, output, curve, metrics, lines)


def test_the_adapter_is_one_that_the_pipeline_reads(run: Run) -> None:
    adapter = read_adapter(run.output)
    assert len(adapter.modules) == 4 * 3
    assert {module.rank for module in adapter.modules.values()} == {4}
    assert adapter.base_sha256 == sha256_file(run.base / MANIFEST_NAME)
    assert sorted(path.name for path in run.output.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o644 for path in run.output.iterdir())


def test_no_local_path_is_in_any_file(run: Run) -> None:
    config = json.loads((run.output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "test/tiny"
    assert config["revision"] is None
    for path in (*run.output.iterdir(), run.curve):
        assert str(run.base.parent.parent).encode() not in path.read_bytes()


def test_the_manifest_says_what_the_adapter_was_made_from(run: Run) -> None:
    identity = verify_manifest(run.output)["identity"]
    assert identity["base"] == sha256_file(run.base / MANIFEST_NAME)
    assert identity["train_set"] == sha256_file(run.train_set)
    assert identity["train"] == recipe(epochs=8, examples=10).model_dump(mode="json")
    assert identity["seed"] == 7
    assert {key: identity[key] for key in run.metrics} == run.metrics


def test_metrics_and_curve_agree_and_the_loss_falls(run: Run) -> None:
    curve = json.loads(run.curve.read_text())
    steps = 24  # 8 epochs of 10 rows, 4 rows a step
    assert [point["step"] for point in curve] == list(range(1, steps + 1))
    assert curve[0]["learning_rate"] == 0.005 > curve[-1]["learning_rate"]
    losses = [point["loss"] for point in curve]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    assert (run.metrics["rows"], run.metrics["steps"], run.metrics["cut_rows"]) == (10, steps, 0)
    assert run.metrics["final_loss"] == losses[-1]
    assert run.metrics["mean_loss_last_quarter"] == pytest.approx(sum(losses[-6:]) / 6, rel=1e-5)
    assert 0 < run.metrics["learned_tokens"] < run.metrics["tokens"]
    assert run.lines[0].startswith("train: 10 of 12 rows")
    assert run.lines[-1].startswith("train: step 24 of 24, loss ")


def test_the_model_with_the_adapter_prefers_what_it_learned(run: Run) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from karma_electric.training.rendering import render_examples

    rows = render_examples(examples(), AutoTokenizer.from_pretrained(run.base), max_length=128, where="set")
    model = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.float32)

    def loss() -> float:
        with torch.no_grad():
            parts = [
                model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor([row.labels])).loss for row in rows
            ]
        return float(torch.stack(parts).mean())

    before = loss()
    model = PeftModel.from_pretrained(model, run.output)
    assert loss() < 0.7 * before


SCRIPT = """
import sys
from pathlib import Path
from karma_electric.training.qlora import train_adapter
from tests.training.sets import recipe
base, train_set, output = map(Path, sys.argv[1:])
train_adapter(base, train_set, output / "adapter", params=recipe(epochs=1, lora={lora}), loss_curve=output / "curve")
"""


def test_two_processes_write_the_same_bytes(tiny_llama: Path, tmp_path: Path) -> None:
    """Other hash seeds and folders, with random dropout; nothing is printed, and the hub is not called."""
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ["v_proj", "q_proj", "gate_proj", "up_proj"]}
    train_set = write_set(tmp_path / "set.jsonl", examples())
    environment = {key: value for key, value in os.environ.items() if key not in {"HF_HUB_OFFLINE", "CI"}}
    environment |= {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPOSITORY)}
    outputs = []
    for name, hash_seed in (("one", "1"), ("other/place", "2")):
        output = tmp_path / name
        output.mkdir(parents=True)
        with serve_hub(tmp_path / f"hub-{hash_seed}") as server:
            finished = subprocess.run(
                [sys.executable, "-c", SCRIPT.format(lora=lora), str(tiny_llama), str(train_set), str(output)],
                cwd=output,
                env=environment | {"PYTHONHASHSEED": hash_seed, "HF_ENDPOINT": server.url},
                capture_output=True,
                text=True,
                check=False,
            )
        assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")
        assert server.faults.seen == []
        outputs.append({p.relative_to(output): p.read_bytes() for p in output.rglob("*") if p.is_file()})
    assert len(outputs[0]) == 4
    assert outputs[0] == outputs[1]


@pytest.fixture
def earlier(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An output and a curve of an earlier run, which a failing one must leave as they are."""
    output, curve = tmp_path / "adapter", tmp_path / "curve.json"
    output.mkdir()
    (output / "adapter_model.safetensors").write_text("earlier")
    curve.write_text("earlier")
    yield output, curve
    assert (output / "adapter_model.safetensors").read_text() == curve.read_text() == "earlier"
    assert not list(tmp_path.glob(".*"))


def test_a_base_with_other_bytes_is_refused(tiny_llama: Path, tmp_path: Path, earlier: tuple[Path, Path]) -> None:
    base = Path(shutil.copytree(tiny_llama, tmp_path / "base"))
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    train_set = write_set(tmp_path / "set.jsonl", examples())
    with pytest.raises(IntegrityError, match=r"model\.safetensors: sha256 is"):
        train_adapter(base, train_set, earlier[0], params=recipe(), loss_curve=earlier[1])


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "holds no rows"),
        (b'{"id": "a"\n', r"set\.jsonl:1: not JSON"),
        (b'{"id":"a","source":"s","category":"c","conversations":[]}\n', r"set\.jsonl:1: .*empty list"),
        (b"\xff\n", r"set\.jsonl:1: not UTF-8"),
        (None, r"set\.jsonl: no such file"),
    ],
)
def test_a_set_that_cannot_be_read_is_refused(
    tiny_llama: Path, tmp_path: Path, earlier: tuple[Path, Path], content: bytes | None, fault: str
) -> None:
    train_set = tmp_path / "set.jsonl"
    if content is not None:
        train_set.write_bytes(content)
    with pytest.raises(InputError, match=fault):
        train_adapter(tiny_llama, train_set, earlier[0], params=recipe(), loss_curve=earlier[1])


def test_a_row_without_room_for_its_answer_is_refused(
    tiny_llama: Path, tmp_path: Path, earlier: tuple[Path, Path]
) -> None:
    train_set = write_set(tmp_path / "set.jsonl", examples())
    with pytest.raises(InputError, match=r"row 'row-\d+': no token of an answer"):
        train_adapter(tiny_llama, train_set, earlier[0], params=recipe(max_length=16), loss_curve=earlier[1])


def test_cut_rows_are_counted(tiny_llama: Path, tmp_path: Path) -> None:
    train_set = write_set(tmp_path / "set.jsonl", examples(6))
    metrics = train_adapter(
        tiny_llama,
        train_set,
        tmp_path / "adapter",
        params=recipe(max_length=64, epochs=1),
        loss_curve=tmp_path / "curve.json",
    )
    assert 0 < metrics["cut_rows"] < metrics["rows"] == 6


def test_a_diverging_run_is_stopped(tiny_llama: Path, tmp_path: Path, earlier: tuple[Path, Path]) -> None:
    train_set = write_set(tmp_path / "set.jsonl", examples())
    params = recipe(learning_rate=1e30, optimizer="adamw_torch")
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d+; lower train\.learning_rate"):
        train_adapter(tiny_llama, train_set, earlier[0], params=params, loss_curve=earlier[1])


def test_a_run_that_changes_nothing_is_refused(tiny_llama: Path, tmp_path: Path, earlier: tuple[Path, Path]) -> None:
    """One step of warm-up has a learning rate of zero."""
    train_set = write_set(tmp_path / "set.jsonl", examples(4))
    params = recipe(epochs=1, warmup_ratio=0.9)
    with pytest.raises(InputError, match="no step changed the adapter"):
        train_adapter(tiny_llama, train_set, earlier[0], params=params, loss_curve=earlier[1])


def test_labels_on_the_prompt_are_caught(
    tiny_llama: Path, tmp_path: Path, earlier: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from karma_electric.training import packing

    whole = packing.packed_row

    def shifted(rows: Any, keys: Any, **more: Any) -> packing.PackedRow:
        """The token before an answer learns, too."""
        row = whole(rows, keys, **more)
        learned = row.learned.clone()
        learned[0] -= 1
        return packing.PackedRow(**{name: getattr(row, name) for name in row.__slots__} | {"learned": learned})

    monkeypatch.setattr(packing, "packed_row", shifted)
    train_set = write_set(tmp_path / "set.jsonl", examples())
    with pytest.raises(RuntimeError, match="a packed row is not what was rendered"):
        train_adapter(tiny_llama, train_set, earlier[0], params=recipe(), loss_curve=earlier[1])
