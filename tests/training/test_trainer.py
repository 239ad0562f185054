from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from karma_electric.errors import SetupError
from karma_electric.training.build import all_cores, build_trainer, check_labels, memory_errors
from karma_electric.training.progress import LossCurve, duration, peak_flops
from karma_electric.training.rendering import RenderedExample, render_examples
from karma_electric.training.trainer import PackedTrainer
from tests.training.sets import examples, recipe, write_set

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def rendered(tiny_llama: Path) -> list[RenderedExample]:
    return render_examples(examples(8), AutoTokenizer.from_pretrained(tiny_llama), max_length=128, where="set")


def build(base: Path, rows: list[RenderedExample], scratch: Path, **changes: Any) -> PackedTrainer:
    tokenizer = AutoTokenizer.from_pretrained(base)
    return build_trainer(base, tokenizer, rows, recipe(**changes), scratch, LossCurve(lambda _: None))


@pytest.fixture(scope="module")
def trainer(tiny_llama: Path, rendered: list[RenderedExample], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return build(tiny_llama, rendered, tmp_path_factory.mktemp("trainer"), epochs=1)


def test_the_base_is_nf4_with_double_quantisation_and_bf16_compute(trainer: PackedTrainer) -> None:
    layer = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    state = layer.weight.quant_state
    assert (state.quant_type, state.nested, layer.compute_dtype) == ("nf4", True, torch.bfloat16)
    trainable = {name for name, value in trainer.model.named_parameters() if value.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert type(trainer.create_optimizer()).__module__.startswith(("bitsandbytes", "accelerate"))
    assert trainer.args.optim == "paged_adamw_8bit"


def test_the_microbatch_does_not_change_the_step(
    tiny_llama: Path, rendered: list[RenderedExample], tmp_path: Path
) -> None:
    losses = []
    for tokens in (128, 1024):
        curve = LossCurve(lambda _: None)
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        params = recipe(tokens_per_microbatch=tokens, epochs=1)
        build_trainer(tiny_llama, tokenizer, rendered, params, tmp_path, curve).train()
        losses.append([point["loss"] for point in curve.points])
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0.0, [0.005, 0.005, 0.005, 0.005]),
        ("constant", 0.5, [0.0, 0.0025, 0.005, 0.005]),
        ("linear", 0.25, [0.0, 0.005, 0.00333333, 0.00166667]),
    ],
)
def test_schedules(
    tiny_llama: Path,
    rendered: list[RenderedExample],
    tmp_path: Path,
    schedule: str,
    warmup: float,
    rates: list[float],
) -> None:
    curve = LossCurve(lambda _: None)
    params = recipe(epochs=2, schedule=schedule, warmup_ratio=warmup, optimizer="adamw_torch")
    build_trainer(tiny_llama, AutoTokenizer.from_pretrained(tiny_llama), rendered, params, tmp_path, curve).train()
    assert [point["learning_rate"] for point in curve.points] == pytest.approx(rates, rel=1e-5)


def test_a_missing_row_is_caught(trainer: PackedTrainer, rendered: list[RenderedExample]) -> None:
    with pytest.raises(RuntimeError, match="an epoch holds 8 sequences, expected 9"):
        check_labels(trainer, [*rendered, rendered[0]])


def test_the_optimizer_has_one_buffer_that_the_adapter_is_a_view_of(trainer: PackedTrainer) -> None:
    (group,) = trainer.create_optimizer().param_groups
    (flat,) = group["params"]
    trained = [value for value in trainer.model.parameters() if value.requires_grad]
    assert flat.numel() >= sum(value.numel() for value in trained)
    assert {value.untyped_storage().data_ptr() for value in trained} == {flat.untyped_storage().data_ptr()}
    assert group["weight_decay"] == 0.01
    for number, value in enumerate(trained):
        value.grad = torch.full_like(value, number + 1.0)
    trained[1].grad = None
    trainer.gather_gradients()
    assert float(flat.grad.sum()) == sum((n + 1.0) * v.numel() for n, v in enumerate(trained) if n != 1)


def test_progress_names_speed_share_of_the_peak_and_time_left() -> None:
    lines: list[str] = []
    curve = LossCurve(lines.append)
    curve.flops_per_token, curve.peak = 1e9, 1e12
    state = type("State", (), {"max_steps": 3, "global_step": 0, "is_world_process_zero": True})()
    for step in (1, 2, 3):
        state.global_step = step
        curve.count(100)
        curve.on_log(None, state, None, {"loss": 2.0, "learning_rate": 0.1})
    assert lines[0] == "train: step 1 of 3, loss 2.000"
    assert " tokens/s, " in lines[1]
    assert "% of peak, " in lines[1]
    assert lines[1].endswith(" left")
    assert not lines[2].endswith(" left")
    assert (peak_flops("NVIDIA H100 80GB HBM3"), peak_flops("a CPU")) == (989e12, None)
    assert [duration(seconds) for seconds in (9.6, 600, 9000)] == ["10 s", "10 min", "2.5 h"]


def test_threads_follow_the_cores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with all_cores():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with all_cores():
        assert torch.get_num_threads() == before


def test_memory_errors_become_one_line() -> None:
    with pytest.raises(SetupError, match=r"lower train\.tokens_per_microbatch"), memory_errors():
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="another fault"), memory_errors():
        raise RuntimeError("another fault")


SCRIPT = """
import sys
from pathlib import Path
from karma_electric.training.qlora import train_adapter
from tests.training.sets import recipe
base, train_set, output, answers, questions = map(Path, sys.argv[1:])
def report(line):
    if "step 1 " in line:
        answers.write_text("stepping")
        questions.read_text()
try:
    train_adapter(base, train_set, output, params=recipe(), loss_curve=output.with_suffix(".json"), report=report)
except BaseException as error:  # whatever it is, or the reader would wait for ever
    answers.write_text(f"{type(error).__name__} {error}")
else:
    answers.write_text("trained on")
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"


def test_training_ends_with_the_process_that_started_it(tiny_llama: Path, tmp_path: Path) -> None:
    answers, questions, output = tmp_path / "answers", tmp_path / "questions", tmp_path / "adapter"
    os.mkfifo(answers)
    os.mkfifo(questions)
    train_set = write_set(tmp_path / "set.jsonl", examples())
    paths = [str(path) for path in (tiny_llama, train_set, output, answers, questions)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, SCRIPT, *paths],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
    )
    assert answers.read_text() == "stepping"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    questions.write_text("go on")
    assert answers.read_text().startswith("SetupError train: the process that started it has ended")
    assert not output.exists()
    assert not output.with_suffix(".json").exists()
