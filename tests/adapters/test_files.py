"""Adapter folders: what peft wrote is read as peft reads it, and everything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from karma_electric.adapters.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    LoraModule,
    read_adapter,
    refuse_overlap,
    tensor_name,
    write_adapter,
)
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import MANIFEST_NAME, write_manifest
from tests.adapters.adapter_files import (
    BASE,
    make_peft_adapter,
    peft_updates,
    plain_config,
    random_factors,
    write_folder,
    write_plain_adapter,
)

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"


def tensors(module: str = Q, rank: int = 4) -> dict[str, Tensor]:
    a, b = random_factors(6, 5, rank, seed=1)
    return {tensor_name(module, "A"): a, tensor_name(module, "B"): b}


def test_an_adapter_of_peft_is_read_as_peft_reads_it(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_peft_adapter(
        tiny_llama,
        tmp_path / "adapter",
        seed=1,
        targets=["q_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 6, "down_proj": 2},
        alpha_pattern={"^model.layers.2.mlp.down_proj": 5},
    )
    adapter = read_adapter(folder)
    expected = peft_updates(tiny_llama, folder)
    assert set(adapter.modules) == set(expected)
    assert list(adapter.modules) == sorted(expected)
    for name, update in expected.items():
        factors = adapter.load(name)
        assert factors.a.dtype == torch.float64
        torch.testing.assert_close((factors.scaling * factors.b @ factors.a).float(), update, rtol=1e-5, atol=1e-6)
    down = adapter.modules["model.layers.2.mlp.down_proj"]
    assert down == LoraModule("model.layers.2.mlp.down_proj", 2, 5.0, out_features=256, in_features=512)
    assert down.scaling == 2.5


@pytest.mark.parametrize(
    "option", [{"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]}]
)
def test_an_adapter_of_another_kind_made_by_peft_is_refused(
    tiny_llama: Path, tmp_path: Path, option: dict[str, Any]
) -> None:
    folder = make_peft_adapter(tiny_llama, tmp_path / "adapter", seed=1, targets=["q_proj"], **option)
    with pytest.raises(InputError, match=next(iter(option))):
        read_adapter(folder)


def test_an_adapter_of_an_embedding_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_peft_adapter(tiny_llama, tmp_path / "adapter", seed=1, targets=["q_proj", "embed_tokens"])
    with pytest.raises(InputError, match="adapts an embedding"):
        read_adapter(folder)


A, B = tensor_name(Q, "A"), tensor_name(Q, "B")
MALFORMED: list[tuple[dict[str, Tensor], str]] = [
    ({}, "holds no tensors"),
    ({A: torch.ones(4, 5)}, "lora_B is missing"),
    ({B: torch.ones(6, 4)}, "lora_A is missing"),
    ({A: torch.ones(4, 5), B: torch.ones(6, 3)}, r"lora_B \[6, 3\], expected \[4, in\]"),
    ({A: torch.ones(3, 5), B: torch.ones(6, 3)}, "gives rank 4"),
    ({A: torch.ones(5, 4), B: torch.ones(4, 6)}, "gives rank 4"),
    ({A: torch.ones(4, 5, 1), B: torch.ones(6, 4)}, "gives rank 4"),
    ({A: torch.ones(4, 0), B: torch.ones(6, 4)}, "gives rank 4"),
    ({A: torch.ones(4, 5).int(), B: torch.ones(6, 4)}, "type is I32"),
    ({A: torch.ones(4, 5).double(), B: torch.ones(6, 4)}, "type is F64"),
    ({**tensors(), "base_model.model.lm_head.weight": torch.ones(2)}, "expected base_model"),
    ({**tensors(), f"base_model.model.{Q}.lora_magnitude_vector": torch.ones(2)}, "expected base_model"),
    ({**tensors(), f"base_model.model.{Q}.lora_B.bias": torch.ones(2)}, "expected base_model"),
    ({**tensors(), f"{Q}.lora_A.weight": torch.ones(4, 5)}, "expected base_model"),
    ({**tensors(), f"base_model.model.{Q}.lora_A.default.weight": torch.ones(4, 5)}, "expected base_model"),
    ({**tensors(), **tensors(V)}, "v_proj: not among target_modules"),
]


@pytest.mark.parametrize(("contents", "message"), MALFORMED)
def test_a_malformed_adapter_is_refused(tmp_path: Path, contents: dict[str, Tensor], message: str) -> None:
    folder = write_folder(tmp_path / "adapter", plain_config(4, 8, ["q_proj"]), contents)
    with pytest.raises(InputError, match=message):
        read_adapter(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_a_value_that_is_not_finite_is_refused(tmp_path: Path, value: float, factor: str) -> None:
    contents = tensors()
    contents[tensor_name(Q, factor)][-1, -1] = value
    adapter = read_adapter(write_folder(tmp_path / "adapter", plain_config(4, 8, ["q_proj"]), contents))
    with pytest.raises(InputError, match=f"lora_{factor}.weight: holds NaN or infinity"):
        adapter.load(Q)


def test_damage_is_seen(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", plain_config(4, 8, ["q_proj"]), tensors())
    weights = bytearray((folder / WEIGHTS_NAME).read_bytes())
    weights[-1] ^= 1
    (folder / WEIGHTS_NAME).write_bytes(weights)
    with pytest.raises(IntegrityError, match="sha256 is"):
        read_adapter(folder)
    (folder / WEIGHTS_NAME).unlink()
    with pytest.raises(IntegrityError, match="missing"):
        read_adapter(folder)


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_folder_without_one_of_its_files_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "adapter", plain_config(4, 8, ["q_proj"]), tensors())
    (folder / name).unlink()
    write_manifest(folder, {"base": BASE})
    with pytest.raises((InputError, IntegrityError), match=f"{name}: cannot be read"):
        read_adapter(folder)


@pytest.mark.parametrize("base", [None, "", "ab" * 31, "AB" * 32, 7, {"sha256": BASE}])
def test_an_adapter_must_name_its_base(tmp_path: Path, base: object) -> None:
    folder = write_folder(tmp_path / "adapter", plain_config(4, 8, ["q_proj"]), tensors())
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["identity"] = {"base": base}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"identity\.base is"):
        read_adapter(folder)


def test_a_result_that_overflows_is_refused(tmp_path: Path) -> None:
    config = read_adapter(write_plain_adapter(tmp_path / "a", {Q: random_factors(6, 5, 4, seed=1)}, alpha=4)).config
    huge = torch.full((6, 4), 1e39, dtype=torch.float64)
    with (
        pytest.raises(InputError, match="lora_B of the result overflows"),
        write_adapter(tmp_path, {Q: LoraModule(Q, 4, 4.0, 6, 5)}, [config]) as writer,
    ):
        writer.write(Q, torch.ones(4, 5), huge)


def test_an_output_that_overlaps_an_input_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "models" / "base"
    source.mkdir(parents=True)
    (tmp_path / "link").symlink_to(source)
    for output in (source, source / "merged", tmp_path / "models", tmp_path / "link", source / ".." / "base"):
        with pytest.raises(InputError, match="overlap"):
            refuse_overlap(output, tmp_path / "other", source)
    refuse_overlap(tmp_path / "models" / "base2", source)
