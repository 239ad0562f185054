"""Which models the PyTorch hooks fit, what a forward must be, and that nothing is left of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from karma_electric.capping.formula import Cap, cap_hidden_states, unit
from karma_electric.capping.pytorch import capped, decoder_blocks, install
from karma_electric.errors import InputError, IntegrityError
from tests.capping.torch_runs import PROMPT, largest, load, logits_of, reference_logits, stepwise


def test_a_model_whose_blocks_lie_in_several_places_is_capped(
    tiny_llama: Path, model64: Any, cap: Cap, tmp_path: Path
) -> None:
    """Some blocks are read from the disk for each forward, as accelerate does it for models that fit on no device."""
    from accelerate import dispatch_model

    spread = load(tiny_llama, torch.float64)
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    places |= {f"model.layers.{layer}": "disk" for layer in range(spread.config.num_hidden_layers)}
    places["model.layers.1"] = "cpu"
    spread = dispatch_model(spread, places, main_device="cpu", offload_dir=tmp_path)
    assert next(decoder_blocks(spread).blocks[2].parameters()).is_meta
    plain = logits_of(spread, input_ids=PROMPT)
    with capped(spread, cap) as hooks:
        lowered = logits_of(spread, input_ids=PROMPT)
        assert hooks.activity.fired > 0
    assert largest(lowered - reference_logits(model64, cap, PROMPT)) < 1e-9
    assert largest(lowered - plain) > 1e-3
    assert np.array_equal(logits_of(spread, input_ids=PROMPT), plain)


def _hook_count(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_removal_leaves_the_model_as_it_was(model32: Any, cap: Cap) -> None:
    before, hooks_before, names = logits_of(model32, input_ids=PROMPT), _hook_count(model32), set(vars(model32))
    with capped(model32, cap):
        assert not np.array_equal(logits_of(model32, input_ids=PROMPT), before)
    assert np.array_equal(logits_of(model32, input_ids=PROMPT), before)
    with pytest.raises(IndexError), capped(model32, cap):
        logits_of(model32, input_ids=torch.tensor([[10**6]]))  # no such token
    assert np.array_equal(logits_of(model32, input_ids=PROMPT), before)
    assert _hook_count(model32) == hooks_before
    assert set(vars(model32)) == names
    hooks = install(model32, cap)
    logits_of(model32, input_ids=PROMPT)
    hooks.remove()
    hooks.remove()
    assert hooks.activity.positions == PROMPT.shape[1] * len(cap.layers)
    assert _hook_count(model32) == hooks_before


def test_a_forward_without_every_capped_layer_is_an_error(tiny_llama: Path, cap: Cap) -> None:
    model = load(tiny_llama, torch.float32)
    with capped(model, cap):
        model.config.num_hidden_layers = 2
        with pytest.raises(IntegrityError, match="layer 2"):
            logits_of(model, input_ids=PROMPT)
        model.config.num_hidden_layers = 4
        logits_of(model, input_ids=PROMPT)
        decoder = decoder_blocks(model).decoder
        decoder.layers[1]._forward_hooks.clear()
        with pytest.raises(IntegrityError, match="layer 1"):
            logits_of(model, input_ids=PROMPT)


def test_a_layer_that_runs_twice_or_alone_is_an_error(tiny_llama: Path, cap: Cap) -> None:
    model = load(tiny_llama, torch.float32)
    decoder = decoder_blocks(model).decoder
    with capped(model, cap):
        logits_of(model, input_ids=PROMPT)
        with pytest.raises(IntegrityError, match="outside"):
            decoder.forward(input_ids=PROMPT)
        decoder.layers[3] = decoder.layers[2]
        with pytest.raises(IntegrityError, match="twice"):
            logits_of(model, input_ids=PROMPT)
        decoder.layers[3] = decoder.layers[0]
        logits_of(model, input_ids=PROMPT)  # the failed forward left nothing behind


def test_what_does_not_fit_the_model_is_refused(model32: Any, cap: Cap) -> None:
    axis = cap.directions[1]
    hooks_before = _hook_count(model32)
    with pytest.raises(InputError, match="layer 4, the model has layers 0 to 3"):
        install(model32, Cap({1: axis, 4: axis}, {1: 0.0, 4: 0.0}, 1))
    with pytest.raises(InputError, match="hidden size is 256"):
        install(model32, Cap({1: unit(np.ones(576))}, {1: 0.0}, 1))
    with pytest.raises(InputError, match="scope"):
        install(model32, cap, scope="prompt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="get_decoder"):
        install(torch.nn.Linear(2, 2), cap)
    with capped(model32, cap), pytest.raises(InputError, match="capped already"):
        install(model32, cap)
    assert _hook_count(model32) == hooks_before


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
ARCHITECTURES = [
    transformers.GPT2Config(vocab_size=64, n_embd=32, n_head=2, n_layer=3, n_positions=64),
    transformers.GPTNeoXConfig(**SMALL, intermediate_size=64),
    transformers.OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32),
    transformers.Qwen2Config(**SMALL, intermediate_size=64, num_key_value_heads=1),
    transformers.Gemma2Config(**SMALL, intermediate_size=64, num_key_value_heads=1, head_dim=16),
]


@pytest.mark.parametrize("config", ARCHITECTURES, ids=lambda config: config.model_type)
def test_other_architectures_are_capped_too(config: Any) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    tokens = torch.tensor([[5, 9, 33, 7, 12]])
    cap = Cap({1: unit(np.random.default_rng(0).normal(size=32))}, {1: -3.0}, 1)
    plain = logits_of(model, input_ids=tokens)
    with capped(model, cap) as hooks:
        found = logits_of(model, input_ids=tokens)
        assert largest(stepwise(model, tokens, first=2) - found) < 1e-9
    assert hooks.activity.firing_rate == 1
    assert largest(found - plain) > 1e-3
    assert largest(found - _reference_any(model, cap, tokens)) < 1e-9


def _reference_any(model: Any, cap: Cap, tokens: Tensor) -> NDArray[Any]:
    """The reference for blocks that may return tuples."""

    def lower(_module: Any, _inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        lowered = torch.from_numpy(
            cap_hidden_states(hidden.numpy(), cap.directions[1], tau=cap.taus[1], alpha=cap.alpha)
        )
        return (lowered, *output[1:]) if isinstance(output, tuple) else lowered

    handle = decoder_blocks(model).blocks[1].register_forward_hook(lower)
    try:
        return logits_of(model, input_ids=tokens)
    finally:
        handle.remove()


def test_a_model_with_an_adapter_is_capped(tiny_llama: Path, model64: Any, cap: Cap) -> None:
    peft = pytest.importorskip("peft")
    with capped(model64, cap):
        expected = logits_of(model64, input_ids=PROMPT)
    adapted = peft.get_peft_model(load(tiny_llama, torch.float64), peft.LoraConfig(target_modules=["q_proj"]))
    with capped(adapted.eval(), cap):
        assert largest(logits_of(adapted, input_ids=PROMPT) - expected) < 1e-9  # a new adapter is zero


def test_gradients_pass_through_the_cap(model64: Any, cap: Cap) -> None:
    with capped(model64, cap):
        with torch.inference_mode():
            model64(input_ids=PROMPT)
        embedded = model64.get_input_embeddings()(PROMPT).detach().requires_grad_()
        model64(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert torch.isfinite(embedded.grad).all()
    model64.zero_grad()
