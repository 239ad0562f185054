"""What a recipe is said to need, against what was measured, and against the libraries' own counts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from karma_electric.errors import InputError
from karma_electric.fit.base_config import base_config
from karma_electric.fit.machine import Gpu, Machine, this_machine
from karma_electric.fit.needs import extraction_host_bytes, gate_host_bytes, gguf_bytes
from karma_electric.fit.proposal import proposed_budget, write_budget
from karma_electric.fit.report import judge_fit
from karma_electric.fit.training_memory import allocated_bytes, longest_row, model_sizes, needed_host_bytes
from karma_electric.fit.training_set import TrainingSet, measured_set
from karma_electric.gguf_files.llama_config import LlamaConfig, read_llama_config
from karma_electric.gguf_files.quantized_writer import write_quantized_gguf
from karma_electric.gguf_files.reader import read_header
from karma_electric.recipe import Recipe, read_recipe
from karma_electric.training.packing import StepOrder
from tests.cli.running import ROOT, karma_here
from tests.training.sets import examples, recipe, write_set

LLAMA_8B = LlamaConfig(
    context_length=8192, hidden_size=4096, feed_forward_length=14336, blocks=32, heads=32, key_value_heads=8,
    head_size=128, rope_theta=5e5, rms_norm_epsilon=1e-5, vocab_size=128256, tied_embeddings=False, rope_factors=None,
)  # fmt: skip
H100 = Machine(
    cores=16, memory_bytes=120 * 10**9, disk_bytes=10**12, gpus=(Gpu("NVIDIA H100 80GB HBM3", 85_000_000_000),)
)


@pytest.fixture(scope="module")
def profile() -> Recipe:
    return read_recipe(ROOT / "profiles/llama31-8b.yaml")


@pytest.fixture(scope="module")
def steps() -> tuple[tuple[int, ...], ...]:
    """The sequences of benchmarks/train_throughput.py: 10 steps of 16."""
    lengths = np.clip(np.random.default_rng(0).lognormal(0, 0.5, 160), 0.1, 7)
    lengths = np.maximum(8, lengths / lengths.mean() * 566).astype(int)
    return tuple(tuple(int(lengths[number]) for number in step) for step in StepOrder(160, 16, 42))


@pytest.mark.parametrize(
    ("budget", "recomputed", "measured_gib"),
    [(16384, 0.0, 38.37), (8192, 0.0, 30.64), (16384, 1.0, 13.27)],
)
def test_training_on_an_h100_takes_what_was_measured(
    profile: Recipe, steps: tuple[tuple[int, ...], ...], budget: int, recomputed: float, measured_gib: float
) -> None:
    """The table of docs/performance.md."""
    params = profile.train.model_copy(update={"tokens_per_microbatch": budget, "recomputed_share": recomputed})
    found = allocated_bytes(LLAMA_8B, params, longest_row(steps, budget)) / 2**30
    assert found == pytest.approx(measured_gib, rel=0.15)


def test_training_the_shipped_recipe_on_a_cpu_takes_what_was_measured(tmp_path: Path) -> None:
    """4.69 and 4.84 GB with the processes around it; its longest row has 3,161 tokens."""
    shipped = read_recipe(ROOT / "profiles/smollm2-135m.yaml")
    found = needed_host_bytes(base_config(shipped.base, tmp_path), shipped.train, 3161)
    assert found == pytest.approx(4.76e9, rel=0.15)


def test_the_gate_takes_what_was_measured() -> None:
    """All items, on two cores."""
    smollm2 = replace(
        LLAMA_8B, hidden_size=576, feed_forward_length=1536, blocks=30, heads=9, key_value_heads=3, head_size=64,
        vocab_size=49152, tied_embeddings=True,
    )  # fmt: skip
    assert gate_host_bytes("Q8_0", smollm2, cores=2) == pytest.approx(1.31e9, rel=0.15)


def test_extraction_on_a_cpu_takes_what_was_measured(tmp_path: Path) -> None:
    """1.46 GB with the shipped recipe and a float32 copy of the model; its longest prompt has 125 tokens."""
    shipped = read_recipe(ROOT / "profiles/smollm2-135m.yaml")
    config = base_config(shipped.base, tmp_path)
    exact = shipped.model_copy(update={"axis": shipped.axis.model_copy(update={"max_prompt_tokens": 125})})
    assert extraction_host_bytes(exact, config) == pytest.approx(1.464e9, rel=0.15)
    assert extraction_host_bytes(shipped, config) > extraction_host_bytes(exact, config)


def test_sizes_are_those_of_the_model_and_its_adapter(profile: Recipe) -> None:
    sizes = model_sizes(LLAMA_8B, profile.train)
    assert sizes.lora == 167_772_160
    assert sizes.parameters == 8_030_261_248 - 65 * 4096  # the norms


@pytest.mark.parametrize("gguf_type", ["Q8_0", "Q4_K_M"])
def test_a_gguf_file_is_as_large_as_is_said(tiny_llama: Path, tmp_path: Path, gguf_type: str) -> None:
    write_quantized_gguf(tiny_llama, tmp_path / "tiny.gguf", gguf_type=gguf_type, name="tiny")
    stored = sum(tensor.size_bytes for tensor in read_header(tmp_path / "tiny.gguf").tensors)
    assert gguf_bytes(read_llama_config(tiny_llama), gguf_type) == stored


def test_a_set_is_measured_as_training_renders_it(tiny_llama: Path, tmp_path: Path) -> None:
    path = write_set(tmp_path / "set.jsonl", examples(7))
    found = measured_set("v8", path, tiny_llama, recipe())
    assert [len(step) for step in found.steps] == [4, 3]
    assert 0 < found.learned_share < 1
    assert found.tokens == sum(map(sum, found.steps)) > 100


def test_the_proposal_is_the_largest_that_fits(profile: Recipe, steps: tuple[tuple[int, ...], ...]) -> None:
    found = [TrainingSet("v8", steps, 0.7, is_measured=True)]

    def proposed(memory_gb: float, share: float) -> int | None:
        machine = replace(H100, gpus=(Gpu("GPU", round(memory_gb * 1e9)),))
        params = profile.train.model_copy(update={"recomputed_share": share})
        return proposed_budget(LLAMA_8B, params, found, machine)

    most = proposed(85, 0.0)
    assert most is not None
    assert most - 512 < max(sum(step) for step in steps) <= most
    middle, small = proposed(40, 0.0), proposed(24, 1.0)
    assert middle is not None
    assert small is not None
    assert 4096 <= middle < most
    assert small > 4096
    assert proposed(16, 0.0) is None


def test_what_does_not_fit_is_named_with_what_to_do(profile: Recipe, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(CONFIG_8B))
    places = {"base": base, "sets": tmp_path / "sets", "cache": tmp_path / "cache"}
    report = judge_fit(profile, H100, **places)
    assert not report.faults
    assert not report.sets_are_measured
    assert {need.stage for need in report.needs} >= {"base", "train@v6", "merge", "quantize@Q4_K_M", "gate"}
    assert 45e9 < report.disk_bytes < 52e9  # base, merged, Q8_0 and Q4_K_M
    small = Machine(8, 30 * 10**9, 20 * 10**9, (Gpu("NVIDIA L4", 16 * 10**9),))
    faults = judge_fit(profile, small, **places).faults
    assert faults[0].startswith("train@v6: ")
    assert faults[0].endswith(" of GPU memory, there are 16.0 GB; raise train.recomputed_share")
    assert faults[-1].startswith("all outputs: ")
    (base / "config.json").unlink()
    with pytest.raises(InputError, match=r"configuration of meta-llama/Llama-3\.1-8B-Instruct is not on this"):
        judge_fit(profile, H100, **places)


CONFIG_8B = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
}  # fmt: skip


def test_the_packaged_base_is_measured_by_its_header(tmp_path: Path) -> None:
    config = base_config(read_recipe(ROOT / "params.yaml").base, tmp_path)
    assert (config.hidden_size, config.blocks, config.vocab_size) == (576, 30, 49152)
    assert config.tied_embeddings


def test_the_proposal_comes_into_the_recipe_and_nothing_else_changes(tmp_path: Path) -> None:
    before = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(before)
    write_budget(tmp_path / "params.yaml", 1536)
    after = (tmp_path / "params.yaml").read_text()
    assert read_recipe(tmp_path / "params.yaml").train.tokens_per_microbatch == 1536
    assert after.replace("microbatch: 1536", "microbatch: 4096") == before
    (tmp_path / "params.yaml").write_text(json.dumps(yaml.safe_load(before)))
    with pytest.raises(InputError, match="stands on 0 lines of its own"):
        write_budget(tmp_path / "params.yaml", 1536)


def test_the_command_judges_this_machine(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    done = karma_here("fit", "--json", folder=tmp_path)
    report = json.loads(done.stdout)
    assert report["fits"] == (done.returncode == 0)
    machine = this_machine(tmp_path)
    assert report["machine"]["cores"] == machine.cores
    assert {need["stage"]: need for need in report["needs"]}["train@v8"]["host_bytes"] > 1e9
    proposed = report["proposed_tokens_per_microbatch"]
    for before in (512, proposed + 512):  # what fits is raised, and never lowered: that would only train again
        write_budget(tmp_path / "params.yaml", before)
        done = karma_here("fit", "--write", folder=tmp_path)
        assert "train@v8\t0.0\t" in done.stdout
        assert f"the most that fits and is of use is {proposed}" in done.stderr
        after = read_recipe(tmp_path / "params.yaml").train.tokens_per_microbatch
        assert after == (max(before, proposed) if done.returncode == 0 else proposed)
