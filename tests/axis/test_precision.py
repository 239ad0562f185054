"""Float32 states from a bf16 model: what is rounded, and what is left as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from karma_electric.axis.model import LoadedModel, load_model
from karma_electric.axis.precision import float32_states


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(tiny_llama)


def error_of(product: torch.Tensor, states: torch.Tensor, weight: torch.Tensor) -> float:
    """Of `product`, relative to states @ weight.T in float64."""
    exact = states.double() @ weight.double().T
    return float((product - exact).norm() / exact.norm())


def test_the_states_of_attention_lose_nothing_to_bf16(loaded: LoadedModel) -> None:
    states = torch.randn(1, 40, 256, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), float32_states(loaded) as model:
        block: Any = model.blocks[0]
        attention, mlp = block.self_attn.q_proj, block.mlp.up_proj
        found = attention(states), mlp(states)
    assert error_of(found[0], states, attention.weight.detach()) < 1e-5
    assert error_of(found[1], states, mlp.weight.detach()) < 4e-3  # exact without bf16 products
    assert found[0].dtype == found[1].dtype == torch.float32


def test_the_model_and_the_precision_are_as_they_were(loaded: LoadedModel) -> None:
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    with float32_states(loaded) as model:
        assert model.model.dtype == torch.float32
        model.decoder(input_ids=torch.tensor([[5, 6, 7]]))
        assert torch.get_float32_matmul_precision() == "highest"
    assert loaded.model.dtype == torch.bfloat16
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_bias_is_added_once(loaded: LoadedModel) -> None:
    with float32_states(loaded) as model:
        block: Any = model.blocks[1]
        layer = block.self_attn.q_proj
        states = torch.randn(2, 3, 256)
        without = layer(states)
        layer.bias = torch.nn.Parameter(torch.full((256,), 3.0))
        torch.testing.assert_close(layer(states), without + 3.0)


def test_a_model_of_another_type_is_measured_as_it_is(tiny_llama: Path) -> None:
    wide = load_model(tiny_llama, dtype=torch.float64)
    with float32_states(wide) as model:
        assert model is wide
