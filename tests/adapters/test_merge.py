"""Merging: what peft gives, rounded once; in bounded memory; everything else byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from karma_electric.adapters import merge as merge_module
from karma_electric.adapters.blend import blend_adapters
from karma_electric.adapters.files import WEIGHTS_NAME
from karma_electric.adapters.merge import merge_adapter
from karma_electric.adapters.params import InterpolateParams
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import MANIFEST_NAME, describe_files, sha256_file, verify_manifest, write_manifest
from karma_electric.safetensors_files import (
    INDEX_NAME,
    SINGLE_NAME,
    SafetensorsWriter,
    open_safetensors,
    open_safetensors_folder,
    save_safetensors,
)
from tests.adapters.adapter_files import load_base, make_peft_adapter, random_factors, write_plain_adapter

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Q = "model.layers.0.self_attn.q_proj"


def weights_of(folder: Path) -> dict[str, Tensor]:
    weights = open_safetensors_folder(folder)
    return {name: weights.file_of(name).load(name) for name in weights.names()}


def peft_merged(base: Path, adapter: Path) -> dict[str, Tensor]:
    """The state of peft's merge into a float32 copy of the base."""
    from peft import PeftModel

    merged = PeftModel.from_pretrained(load_base(base), adapter).merge_and_unload()
    return {name: tensor.detach() for name, tensor in merged.state_dict().items()}


def assert_rounded_once(found: Tensor, exact: Tensor) -> None:
    """bf16 has 8 significant bits: rounding moves a number by at most 2^-8 of its size."""
    assert found.dtype == torch.bfloat16
    allowed = exact.double().abs() * (2**-8 + 1e-5) + 1e-7  # float32 sums in another order
    assert bool(((found.double() - exact.double()).abs() <= allowed).all())
    assert float((found == exact.bfloat16()).double().mean()) > 0.999


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_peft_adapter(tiny_llama, tmp_path_factory.mktemp("peft") / "adapter", seed=3, targets=TARGETS)


def shard(base: Path, folder: Path, n_shards: int) -> Path:
    """A copy of `base` whose tensors lie in `n_shards` files with an index."""
    shutil.copytree(base, folder)
    weights = weights_of(base)
    (folder / SINGLE_NAME).unlink()
    shard_of: dict[str, str] = {}
    for number in range(n_shards):
        name = f"model-{number + 1:05}-of-{n_shards:05}.safetensors"
        part = {tensor: weights[tensor] for tensor in sorted(weights)[number::n_shards]}
        save_safetensors(folder / name, part, {"format": "pt"})
        shard_of |= dict.fromkeys(part, name)
    (folder / INDEX_NAME).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shard_of}))
    write_manifest(folder, {"repo": "test/tiny", "license": "mit"})
    return folder


def test_a_merge_is_that_of_peft_rounded_once(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in sorted(tiny_llama.iterdir())}
    metrics = merge_adapter(tiny_llama, adapter, tmp_path / "merged")
    expected, base, found = peft_merged(tiny_llama, adapter), weights_of(tiny_llama), weights_of(tmp_path / "merged")
    assert found.keys() == base.keys()
    changed = 0
    for name, tensor in found.items():
        if name.split(".")[-2] in TARGETS:
            assert_rounded_once(tensor, expected[name])
            assert not torch.equal(tensor, base[name])
            changed += 1
        else:
            assert torch.equal(tensor.view(torch.uint8), base[name].view(torch.uint8))
    assert changed == metrics["n_modules_merged"] == 28
    assert {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in sorted(tiny_llama.iterdir())} == before

    updates = {n: expected[n].double() - base[n].double() for n in found if n.split(".")[-2] in TARGETS}
    update_norm = sum(float(u.square().sum()) for u in updates.values()) ** 0.5
    base_norm = sum(float(base[n].double().square().sum()) for n in updates) ** 0.5
    rounding = sum(float((found[n].double() - expected[n].double()).square().sum()) for n in updates) ** 0.5
    assert metrics["update_norm"] == pytest.approx(update_norm, rel=1e-4)
    assert metrics["update_relative_norm"] == pytest.approx(update_norm / base_norm, rel=1e-4)
    assert metrics["rounding_relative_error"] == pytest.approx(rounding / update_norm, rel=1e-3)
    assert metrics["total_bytes"] == sum(t.nbytes for t in base.values())


def test_the_merged_folder_is_a_whole_model(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    progress: list[str] = []
    merge_adapter(tiny_llama, adapter, tmp_path / "merged", progress.append)
    assert progress == [f"shard 1 of 1: {SINGLE_NAME}"]
    identity = verify_manifest(tmp_path / "merged")["identity"]
    assert identity == {
        "source": "folder",
        "repo": "test/tiny",
        "license": "mit",
        "architecture": "LlamaForCausalLM",
        "hidden_size": 256,
        "n_layers": 4,
        "kind": "merged",
        "base": sha256_file(tiny_llama / MANIFEST_NAME),
        "adapter": sha256_file(adapter / MANIFEST_NAME),
        "n_modules_merged": 28,
    }
    copied = {path.name for path in tiny_llama.iterdir()} - {SINGLE_NAME, MANIFEST_NAME}
    assert {"config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"} <= copied
    for name in copied:
        assert (tmp_path / "merged" / name).read_bytes() == (tiny_llama / name).read_bytes()
    assert {path.name for path in (tmp_path / "merged").iterdir()} == copied | {SINGLE_NAME, MANIFEST_NAME}
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.bfloat16)
    tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "merged")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert torch.isfinite(model(**tokenizer(text, return_tensors="pt")).logits).all()


def test_shards_and_blocks_change_nothing(
    tiny_llama: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_adapter(tiny_llama, adapter, tmp_path / "whole")
    base = shard(tiny_llama, tmp_path / "sharded", 3)
    shutil.copytree(adapter, tmp_path / "adapter")
    write_manifest(tmp_path / "adapter", {"base": sha256_file(base / MANIFEST_NAME)})
    monkeypatch.setattr(merge_module, "BLOCK_BYTES", 7 * 4 * 256)  # 7 rows; 256 is no multiple
    metrics = merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert metrics["n_shards"] == 3
    index = json.loads((tmp_path / "merged" / INDEX_NAME).read_text())
    assert index["weight_map"] == json.loads((base / INDEX_NAME).read_text())["weight_map"]
    assert index["metadata"] == {"total_size": metrics["total_bytes"]}
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "merged")
    assert whole.keys() == parts.keys()
    for name, tensor in whole.items():
        assert float((tensor == parts[name]).double().mean()) > 0.9999  # a block may sum in another order


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_a_base_of_another_type_keeps_it(tmp_path: Path, kind: torch.dtype) -> None:
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(kind)
    base = small_base(tmp_path / "base", {f"{Q}.weight": weight})
    a, b = random_factors(6, 5, 2, seed=0)
    lora = write_plain_adapter(tmp_path / "a", {Q: (a, b)}, alpha=3, base=sha256_file(base / MANIFEST_NAME))
    metrics = merge_adapter(base, lora, tmp_path / "merged")
    found = weights_of(tmp_path / "merged")[f"{Q}.weight"]
    exact = weight.double() + 1.5 * b.double() @ a.double()
    assert found.dtype == kind
    torch.testing.assert_close(found.double(), exact, rtol=2**-11 if kind == torch.float16 else 1e-6, atol=1e-6)
    assert (metrics["rounding_relative_error"] == 0) == (kind == torch.float32)


def small_base(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    save_safetensors(folder / SINGLE_NAME, tensors, {"format": "pt"})
    facts = {"architectures": ["LlamaForCausalLM"], "hidden_size": 5, "num_hidden_layers": 1}
    (folder / "config.json").write_text(json.dumps(facts | (config or {})))
    write_manifest(folder, {"repo": "test/small"})
    return folder


def small_adapter(folder: Path, base: Path, module: str = Q, shape: tuple[int, int] = (6, 5), size: float = 1) -> Path:
    a, b = random_factors(*shape, 2, seed=0)
    return write_plain_adapter(folder, {module: (size * a, b)}, alpha=2, base=sha256_file(base / MANIFEST_NAME))


WEIGHT = {f"{Q}.weight": torch.ones(6, 5).bfloat16(), "model.norm.weight": torch.ones(5).bfloat16()}


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        ("model.layers.1.self_attn.q_proj", (6, 5), "has no tensor model.layers.1.self_attn.q_proj.weight"),
        ("layers.0.self_attn.q_proj", (6, 5), "has no tensor layers.0.self_attn.q_proj.weight"),
        (Q, (5, 6), r"shape \[5, 6\], .* BF16 of shape \[6, 5\]"),
        (Q, (6, 1), r"shape \[6, 1\]"),
        ("model.norm", (5, 1), r"BF16 of shape \[5\]"),
    ],
)
def test_every_module_must_hit_one_weight_of_its_shape(
    tmp_path: Path, module: str, shape: tuple[int, int], message: str
) -> None:
    base = small_base(tmp_path / "base", WEIGHT)
    with pytest.raises(InputError, match=message):
        merge_adapter(base, small_adapter(tmp_path / "a", base, module, shape), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_integer_weight_is_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", {f"{Q}.weight": torch.ones(6, 5, dtype=torch.int8)})
    with pytest.raises(InputError, match="has I8 of shape"):
        merge_adapter(base, small_adapter(tmp_path / "a", base), tmp_path / "merged")


@pytest.mark.parametrize(
    ("kind", "value", "size"),
    [
        (torch.bfloat16, "nan", 1.0),
        (torch.float32, "inf", 1.0),
        (torch.float32, "-inf", 1.0),
        (torch.float16, "1", 1e6),
    ],
)
def test_a_merge_that_is_not_finite_is_refused(tmp_path: Path, kind: torch.dtype, value: str, size: float) -> None:
    weight = torch.ones(6, 5).to(kind)
    weight[3, 2] = float(value)
    base = small_base(tmp_path / "base", {f"{Q}.weight": weight})
    with pytest.raises(IntegrityError, match="it is not finite in"):
        merge_adapter(base, small_adapter(tmp_path / "a", base, size=size), tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base"]


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base", WEIGHT)
    other = small_base(tmp_path / "other", WEIGHT, {"hidden_size": 6})
    with pytest.raises(InputError, match="train it on this base"):
        merge_adapter(base, small_adapter(tmp_path / "a", other), tmp_path / "merged")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": []}, "architectures is"),
        ({"architectures": None}, "architectures is"),
        ({"hidden_size": "5"}, "hidden_size is '5'"),
        ({"num_hidden_layers": None}, "num_hidden_layers is None"),
    ],
)
def test_a_base_without_its_facts_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    base = small_base(tmp_path / "base", WEIGHT, config)
    with pytest.raises(InputError, match=message):
        merge_adapter(base, small_adapter(tmp_path / "a", base), tmp_path / "merged")


@pytest.mark.parametrize("damaged", ["base", "a"])
def test_damage_leaves_the_output_as_it_was(tmp_path: Path, damaged: str) -> None:
    base = small_base(tmp_path / "base", WEIGHT)
    lora = small_adapter(tmp_path / "a", base)
    merge_adapter(base, lora, tmp_path / "merged")
    before = describe_files(tmp_path / "merged")
    path = tmp_path / damaged / (SINGLE_NAME if damaged == "base" else WEIGHTS_NAME)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256"):
        merge_adapter(base, lora, tmp_path / "merged")
    assert describe_files(tmp_path / "merged") == before
    with pytest.raises(InputError, match="overlap"):
        merge_adapter(base, lora, base)


def test_a_merged_blend_is_the_blend_of_the_updates(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    other = make_peft_adapter(tiny_llama, tmp_path / "other", seed=9, rank=2, alpha=6, targets=["q_proj", "up_proj"])
    params = InterpolateParams.model_validate({"from": "v6", "to": "v8", "alpha": 0.3, "method": "exact", "rank": None})
    blend_adapters(adapter, other, tmp_path / "blend", params=params)
    merge_adapter(tiny_llama, tmp_path / "blend", tmp_path / "merged")
    base, found = weights_of(tiny_llama), weights_of(tmp_path / "merged")
    left, right = peft_merged(tiny_llama, adapter), peft_merged(tiny_llama, other)
    for name in (f"{Q}.weight", "model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.down_proj.weight"):
        expected = 0.7 * left[name].double() + 0.3 * right[name].double()
        assert_rounded_once(found[name], expected.float())
        assert not torch.equal(found[name], base[name])


MERGE = """
import sys, resource
from pathlib import Path
from karma_electric.adapters.merge import merge_adapter
import torch
torch.ones(64, 64) @ torch.ones(64, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
merge_adapter(*map(Path, sys.argv[1:4]))
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def run_merge(*paths: Path, threads: str = "1") -> int:
    """Merge in a process of its own; the growth of its peak memory in bytes."""
    environment = {**os.environ, "PYTHONHASHSEED": threads, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", MERGE, *map(str, paths)]
    return int(subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout)


def test_two_processes_write_the_same_bytes(tiny_llama: Path, adapter: Path, tmp_path: Path) -> None:
    for threads in ("1", "2"):
        run_merge(tiny_llama, adapter, tmp_path / threads / "merged", threads=threads)
    one, two = tmp_path / "1" / "merged", tmp_path / "2" / "merged"
    assert describe_files(one) == describe_files(two)
    assert sha256_file(one / MANIFEST_NAME) == sha256_file(two / MANIFEST_NAME)


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    n_shards, shape = 6, (4096, 8192)  # 64 MiB of bf16 each
    base = tmp_path / "base"
    base.mkdir()
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    shard_of, modules = {}, {}
    for number in range(n_shards):
        module = f"model.layers.{number}.mlp.up_proj"
        name = f"model-{number}.safetensors"
        with SafetensorsWriter(base / name, {f"{module}.weight": ("BF16", shape)}, {"format": "pt"}) as writer:
            writer.write(f"{module}.weight", noise)
        shard_of[f"{module}.weight"] = name
        if number:  # the first is copied
            modules[module] = random_factors(*shape, 4, seed=number)
    (base / INDEX_NAME).write_text(json.dumps({"weight_map": shard_of}))
    config = {"architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "num_hidden_layers": n_shards}
    (base / "config.json").write_text(json.dumps(config))
    write_manifest(base, {"repo": "test/large"})
    lora = write_plain_adapter(tmp_path / "a", modules, alpha=4, base=sha256_file(base / MANIFEST_NAME))
    growth_bytes = run_merge(base, lora, tmp_path / "merged")
    model_bytes = n_shards * noise.nbytes
    assert growth_bytes < model_bytes // 2
    merged = open_safetensors(tmp_path / "merged" / "model-5.safetensors").load("model.layers.5.mlp.up_proj.weight")
    a, b = modules["model.layers.5.mlp.up_proj"]
    rows = slice(1020, 1030)  # around the border of two blocks
    assert_rounded_once(merged[rows], noise[rows].float() + b[rows] @ a)
    copied = open_safetensors(tmp_path / "merged" / "model-0.safetensors").load("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(copied, noise)
    shutil.rmtree(tmp_path)
