"""The pass on packed rows against transformers' own on one sequence at a time, with the same modules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, MistralConfig

from karma_electric.errors import InputError
from karma_electric.training import elementwise
from karma_electric.training.packed_llama import PackedLlama, recomputed_blocks
from karma_electric.training.packing import packed_row
from karma_electric.training.rendering import RenderedExample, render_examples
from tests.training.sets import examples

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def rows(tiny_llama: Path) -> list[RenderedExample]:
    return render_examples(examples(6), AutoTokenizer.from_pretrained(tiny_llama), max_length=128, where="set")


def with_lora(base: Path, *, targets: Sequence[str] = ALL, dropout: float = 0.0, nf4: bool = False) -> Any:
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16 if nf4 else torch.float32, **({"quantization_config": quantised} if nf4 else {})
    )
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=dropout, target_modules=list(targets))
    model = get_peft_model(model, config).train()
    for name, value in model.named_parameters():
        if value.requires_grad:
            value.data = value.data.to(torch.bfloat16 if nf4 else torch.float32)
            if "lora_B" in name:
                value.data.normal_(0, 0.05)
    return model


def gradient(model: Any) -> torch.Tensor:
    parts = [value.grad.flatten().float() for value in model.parameters() if value.requires_grad]
    model.zero_grad()
    return torch.cat(parts)


def reference(model: Any, rows: Sequence[RenderedExample]) -> tuple[float, torch.Tensor]:
    total = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1].float()
        loss = cross_entropy(logits, torch.tensor(row.labels)[1:], reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total, gradient(model)


def packed(model: Any, llama: PackedLlama, groups: Sequence[Sequence[int]], rows: Any) -> tuple[float, torch.Tensor]:
    total = 0.0
    for group in groups:
        loss = llama.loss(packed_row([rows[number] for number in group], group))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total, gradient(model)


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("targets", [ALL, ["q_proj", "v_proj", "down_proj"]])
def test_packed_is_unpacked_in_loss_and_gradient(
    tiny_llama: Path, rows: list[RenderedExample], targets: list[str]
) -> None:
    model = with_lora(tiny_llama, targets=targets)
    expected, expected_gradient = reference(model, rows)
    for share in (0.0, 0.5, 1.0):
        llama = PackedLlama(model.get_base_model(), torch.float32, recomputed_share=share)
        for groups in ([[0, 1, 2, 3, 4, 5]], [[4, 1], [0], [5, 2, 3]]):
            loss, found = packed(model, llama, groups, rows)
            assert loss == pytest.approx(expected, rel=1e-5)
            assert apart(found, expected_gradient) < 1e-5


def test_with_nf4_it_is_what_peft_and_bitsandbytes_compute(tiny_llama: Path, rows: list[RenderedExample]) -> None:
    model = with_lora(tiny_llama, nf4=True)
    expected, expected_gradient = reference(model, rows)
    llama = PackedLlama(model.get_base_model(), torch.bfloat16)
    loss, found = packed(model, llama, [range(6)], rows)
    assert loss == pytest.approx(expected, rel=1e-3)
    assert apart(found, expected_gradient) < 0.03


def test_a_small_adapter_is_not_lost_in_rounding(tiny_llama: Path) -> None:
    """In 16 bits, what an adapter of a thousandth of the weights changes is there on average."""
    model = with_lora(tiny_llama, nf4=True)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            value.data.fill_(2e-4)
    causal = model.get_base_model()
    with torch.no_grad():
        changes = []
        for dtype in (torch.bfloat16, torch.float32):
            llama = PackedLlama(causal, dtype)
            outputs = []
            for factor in (1.0, 0.0):
                block = llama.blocks[0]
                for part in block.down.parts:
                    part.scale = 2.0 * factor
                x = torch.randn(400, block.down.n_columns, generator=torch.Generator().manual_seed(0)).to(dtype)
                outputs.append(block.down.forward(x.abs(), x.abs())[0].float())
            changes.append(float((outputs[0] - outputs[1]).mean()))
    assert changes[0] == pytest.approx(changes[1], rel=0.2)


def test_dropout_is_the_same_however_it_is_packed(tiny_llama: Path, rows: list[RenderedExample]) -> None:
    model = with_lora(tiny_llama, dropout=0.3)
    llama = PackedLlama(model.get_base_model(), torch.float32)
    loss, found = packed(model, llama, [range(6)], rows)
    split_loss, split = packed(model, llama, [[3, 1], [0, 2, 4], [5]], rows)
    assert split_loss == pytest.approx(loss, rel=1e-5)
    assert apart(split, found) < 1e-5
    recomputing = PackedLlama(model.get_base_model(), torch.float32, recomputed_share=1.0)
    assert apart(packed(model, recomputing, [range(6)], rows)[1], found) < 1e-6
    plain = with_lora(tiny_llama)
    assert packed(plain, PackedLlama(plain.get_base_model(), torch.float32), [range(6)], rows)[0] != loss


def test_no_token_sees_another_conversation(tiny_llama: Path, rows: list[RenderedExample]) -> None:
    model = with_lora(tiny_llama, nf4=True)
    llama = PackedLlama(model.get_base_model(), torch.bfloat16)
    first, second, third = rows[:3]
    changed = RenderedExample(
        "changed", tuple(200 - token % 100 for token in second.input_ids), second.assistant_mask, is_cut=False
    )
    with torch.no_grad():
        before, after = (llama.logits(packed_row([first, middle, third], [1, 2, 3])) for middle in (second, changed))
    start, end = len(first.input_ids), len(first.input_ids) + len(second.input_ids)
    assert torch.equal(before[:start], after[:start])
    assert torch.equal(before[end:], after[end:])
    assert not torch.equal(before[start:end], after[start:end])


def test_dropout_drops_its_share_independently() -> None:
    rows = elementwise.dropout_rows(torch.arange(1000, dtype=torch.int32), 8)
    masks = [elementwise.kept(rows[place], elementwise.dropout_columns(512, rows.device), 0.1) for place in (0, 1)]
    for mask in masks:
        assert float(mask.float().mean()) == pytest.approx(0.9, abs=2e-3)
        assert float(mask.float().mean(0).std()) == pytest.approx((0.09 / 1000) ** 0.5, rel=0.15)
        assert float(mask.float().mean(1).std()) == pytest.approx((0.09 / 512) ** 0.5, rel=0.15)
    both = (masks[0] & masks[1]).float().mean()
    assert float(both) == pytest.approx(0.81, abs=3e-3)


def test_slabs_of_rows_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    gates, products = torch.randn(200, 64), torch.randn(200, 32)
    whole = elementwise.swiglu_backward(products, gates)
    monkeypatch.setattr(elementwise, "_SLAB_ELEMENTS", 64 * 16)
    assert all(torch.equal(a, b) for a, b in zip(elementwise.swiglu_backward(products, gates), whole, strict=True))


def test_recomputed_blocks_are_spread() -> None:
    assert recomputed_blocks(8, 0.5) == {0, 2, 4, 6}
    assert recomputed_blocks(8, 0.0) == frozenset()
    assert recomputed_blocks(3, 1.0) == {0, 1, 2}


def test_another_architecture_is_refused() -> None:
    class Causal:
        config = MistralConfig()

    with pytest.raises(InputError, match="the architecture is mistral, training expects a Llama"):
        PackedLlama(Causal(), torch.float32)
