"""The PyTorch hooks against the float64 reference, on a real tiny Llama."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor

from karma_electric.capping.formula import Cap, cap_hidden_states, unit
from karma_electric.capping.pytorch import CapHooks, capped, decoder_blocks, install
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError, IntegrityError

LAYERS = (1, 2)
END = 2  # also the padding
PROMPT = torch.tensor([[1, 300, 17, 42, 99, 260, 31, 7]])
SECOND = torch.tensor([[1, 88, 310, 12]])


def _load(folder: Path, dtype: torch.dtype) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@pytest.fixture(scope="module")
def model64(tiny_llama: Path) -> Any:
    return _load(tiny_llama, torch.float64)


@pytest.fixture(scope="module")
def model32(tiny_llama: Path) -> Any:
    return _load(tiny_llama, torch.float32)


@contextlib.contextmanager
def _seen(model: Any, see: Callable[[int, Tensor], Tensor | None]) -> Iterator[None]:
    """Plain hooks of the test's own, on every block in order."""
    handles = [
        block.register_forward_hook(lambda _m, _i, output, layer=layer: see(layer, output))
        for layer, block in enumerate(decoder_blocks(model).blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: Any, **inputs: Any) -> list[Tensor]:
    """The outputs of every block."""
    outputs: list[Tensor] = []
    with _seen(model, lambda _layer, hidden: outputs.append(hidden.detach().clone())), torch.no_grad():
        model(**inputs)
    return outputs


@pytest.fixture(scope="module")
def cap(model64: Any) -> Cap:
    """Random axes, with ceilings at the median, so that about half of the positions fire."""
    dice = np.random.default_rng(3)
    directions = {layer: unit(dice.normal(size=256)) for layer in LAYERS}
    outputs = _outputs(model64, input_ids=PROMPT)
    taus = {layer: float(np.median(outputs[layer][0].numpy() @ directions[layer])) for layer in LAYERS}
    return Cap(directions=directions, taus=taus, alpha=0.75)


def _logits(model: Any, **inputs: Any) -> NDArray[Any]:
    with torch.no_grad():
        logits: NDArray[Any] = model(**inputs).logits.double().numpy()
    return logits


def _reference(model: Any, cap: Cap, token_ids: Tensor) -> NDArray[Any]:
    """Logits with the formula applied by numpy."""

    def lower(layer: int, hidden: Tensor) -> Tensor | None:
        if layer not in cap.taus:
            return None
        lowered = cap_hidden_states(hidden.numpy(), cap.directions[layer], tau=cap.taus[layer], alpha=cap.alpha)
        return torch.from_numpy(lowered).to(hidden.dtype)

    with _seen(model, lower):
        return _logits(model, input_ids=token_ids)


def _largest(difference: NDArray[Any]) -> float:
    return float(np.abs(difference).max())


def _conforms(model: Any, cap: Cap, hooks: type[CapHooks] = CapHooks, given: Cap | None = None) -> bool:
    """Whether `hooks`, installed with `given`, computes what the reference computes with `cap`."""
    reference = _reference(model, cap, PROMPT)
    installed = hooks(model, given or cap, "all")
    try:
        return _largest(_logits(model, input_ids=PROMPT) - reference) < 1e-9
    finally:
        installed.remove()


def test_hooks_equal_the_reference_and_change_the_logits(model64: Any, cap: Cap) -> None:
    plain = _logits(model64, input_ids=PROMPT)
    assert _largest(_reference(model64, cap, PROMPT) - plain) > 1e-2
    for alpha in (0.25, 0.75, 1.0):
        assert _conforms(model64, replace(cap, alpha=alpha))
    assert _conforms(model64, Cap({1: cap.directions[1]}, {1: -1e6}, 1.0))


class _NoOp(CapHooks):
    def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        super()._lower(layer, hidden, real)
        return hidden


class _WrongSign(CapHooks):
    def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        return 2 * hidden - super()._lower(layer, hidden, real)


class _Floor(CapHooks):
    """Acts below the ceiling instead of above."""

    def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        axis = self._direction(layer, hidden.device, hidden.dtype)
        short = (hidden @ axis - self.cap.taus[layer]).clamp(max=0)
        return hidden - self.cap.alpha * short[..., None] * axis


class _Clamp(CapHooks):
    """Caps the size of the projection on both sides."""

    def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        axis = self._direction(layer, hidden.device, hidden.dtype)
        along, tau = hidden @ axis, abs(self.cap.taus[layer])
        return hidden - self.cap.alpha * (along - along.clamp(-tau, tau))[..., None] * axis


class _LastPositionOnly(CapHooks):
    def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        return torch.cat([hidden[:, :-1], super()._lower(layer, hidden[:, -1:], None)], dim=1)


class _Unnormalised(CapHooks):
    def _direction(self, layer: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return 1.01 * super()._direction(layer, device, dtype)


class _RoundedAxis(CapHooks):
    def _direction(self, layer: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        return super()._direction(layer, device, dtype).bfloat16().to(dtype)


@pytest.mark.parametrize("mutant", [_NoOp, _WrongSign, _Floor, _Clamp, _LastPositionOnly, _Unnormalised, _RoundedAxis])
def test_a_wrong_cap_is_caught(model64: Any, cap: Cap, mutant: type[CapHooks]) -> None:
    assert not _conforms(model64, cap, mutant)


def test_a_cap_with_wrong_numbers_is_caught(model64: Any, cap: Cap) -> None:
    assert not _conforms(model64, cap, given=replace(cap, alpha=1.0))
    assert not _conforms(model64, cap, given=replace(cap, taus={layer: -tau for layer, tau in cap.taus.items()}))
    assert not _conforms(model64, cap, given=replace(cap, directions={k: -v for k, v in cap.directions.items()}))
    for shift in (-1, 1):
        moved = Cap(
            {layer + shift: direction for layer, direction in cap.directions.items()},
            {layer + shift: tau for layer, tau in cap.taus.items()},
            cap.alpha,
        )
        assert not _conforms(model64, cap, given=moved)


def test_float32_is_the_reference_to_rounding(model32: Any, cap: Cap) -> None:
    with capped(model32, cap):
        found = _logits(model32, input_ids=PROMPT)
    assert _largest(found - _reference(model32, cap, PROMPT)) < 1e-4


def test_bf16_stays_below_the_ceiling_to_one_rounding_and_keeps_what_is_below(tiny_llama: Path, cap: Cap) -> None:
    model = _load(tiny_llama, torch.bfloat16)
    hard = replace(cap, alpha=1.0)
    first = min(hard.layers)
    before = _outputs(model, input_ids=PROMPT)[first].double().numpy()
    with capped(model, hard) as hooks:
        after = _outputs(model, input_ids=PROMPT)
    assert {layer.dtype for layer in after} == {torch.bfloat16}
    for layer in hard.layers:
        lowered = after[layer].double().numpy()
        rounding = np.linalg.norm(lowered, axis=-1) * 2**-8
        assert np.all(lowered @ hard.directions[layer] <= hard.taus[layer] + rounding)
    fires = before @ hard.directions[first] > hard.taus[first]
    assert 0 < fires.sum() < fires.size
    assert np.array_equal(after[first].double().numpy()[~fires], before[~fires])
    assert hooks.activity_by_layer()[first].fired == fires.sum()


def test_activity_counts_positions_above_the_ceiling(model64: Any, cap: Cap) -> None:
    first = min(cap.layers)
    before = _outputs(model64, input_ids=PROMPT)[first].numpy() @ cap.directions[first].astype(np.float64)
    with capped(model64, cap) as hooks:
        assert hooks.activity == CapActivity(0, 0)
        assert hooks.activity.firing_rate is None
        _logits(model64, input_ids=PROMPT)
        length = PROMPT.shape[1]
        assert hooks.activity_by_layer()[first] == CapActivity(length, int((before > cap.taus[first]).sum()))
        assert hooks.activity.positions == length * len(cap.layers)
        with torch.inference_mode():
            model64(input_ids=PROMPT)
        assert hooks.activity.positions == 2 * length * len(cap.layers)
        hooks.reset_activity()
        assert hooks.activity == CapActivity(0, 0)


def _padded(*rows: Tensor) -> dict[str, Tensor]:
    width = max(row.shape[1] for row in rows)
    short = [width - row.shape[1] for row in rows]
    ids = [torch.nn.functional.pad(row, (n, 0), value=END) for row, n in zip(rows, short, strict=True)]
    mask = [torch.nn.functional.pad(torch.ones_like(row), (n, 0)) for row, n in zip(rows, short, strict=True)]
    joined = torch.cat(mask)
    return {
        "input_ids": torch.cat(ids),
        "attention_mask": joined,
        "position_ids": (joined.cumsum(1) - 1).clamp(min=0),
    }


def test_a_left_padded_batch_is_its_rows_and_padding_is_not_counted(model32: Any, cap: Cap) -> None:
    with capped(model32, cap) as hooks:
        alone = [_logits(model32, input_ids=row)[0] for row in (PROMPT, SECOND)]
        counted = hooks.activity
        hooks.reset_activity()
        together = _logits(model32, **_padded(PROMPT, SECOND))
        assert hooks.activity == counted
    assert counted.positions == (PROMPT.shape[1] + SECOND.shape[1]) * len(cap.layers)
    assert _largest(together[0] - alone[0]) < 1e-4
    assert _largest(together[1, -SECOND.shape[1] :] - alone[1]) < 1e-4


def _stepwise(model: Any, token_ids: Tensor, first: int) -> NDArray[Any]:
    """Logits of a cached run: `first` tokens at once, then one by one."""
    cache = transformers.DynamicCache(config=model.config)
    parts = [token_ids[:, :first], *torch.unbind(token_ids[:, first:, None], dim=1)]
    return np.concatenate([_logits(model, input_ids=part, past_key_values=cache, use_cache=True) for part in parts], 1)


def test_a_kv_cache_changes_nothing(model32: Any, cap: Cap) -> None:
    with capped(model32, cap) as hooks:
        whole = _logits(model32, input_ids=PROMPT, use_cache=False)
        counted = hooks.activity
        hooks.reset_activity()
        assert _largest(_stepwise(model32, PROMPT, first=3) - whole) < 1e-4
        assert hooks.activity == counted


def test_generate_works_and_counts_real_positions(model32: Any, cap: Cap) -> None:
    batch = _padded(PROMPT, SECOND)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": END}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with capped(model32, cap) as hooks:
        together = model32.generate(**inputs, **settings)
        assert hooks.activity.positions == (8 + 4 + 2 * 4) * len(cap.layers)  # the last token is never an input
        alone = model32.generate(SECOND, attention_mask=torch.ones_like(SECOND), **settings)
    assert together[1, 8:].tolist() == alone[0, 4:].tolist()


def test_scope_generated_leaves_the_prompt_alone(model32: Any, cap: Cap) -> None:
    plain = _logits(model32, input_ids=PROMPT)
    with capped(model32, cap) as hooks:
        everywhere = _stepwise(model32, PROMPT, first=5)
    with capped(model32, cap, scope="generated") as hooks:
        found = _stepwise(model32, PROMPT, first=5)
        assert hooks.activity.positions == 3 * len(cap.layers)
    assert _largest(found[:, :5] - plain[:, :5]) < 1e-4
    assert _largest(found[:, 5:] - plain[:, 5:]) > 1e-2
    assert _largest(found[:, 5:] - everywhere[:, 5:]) > 1e-3


def test_scope_generated_refuses_what_it_cannot_tell(model32: Any, cap: Cap) -> None:
    with capped(model32, cap, scope="generated"):
        with pytest.raises(InputError, match="use_cache=True"):
            _logits(model32, input_ids=PROMPT, use_cache=False)
        cache = transformers.DynamicCache(config=model32.config)
        _logits(model32, input_ids=PROMPT, past_key_values=cache)
        with pytest.raises(InputError, match="4 tokens on a cache of 8"):
            _logits(model32, input_ids=SECOND, past_key_values=cache)


def test_ceilings_can_change_between_calls(model64: Any, cap: Cap) -> None:
    lower = {layer: tau - 1 for layer, tau in cap.taus.items()}
    with capped(model64, cap) as hooks:
        first = _logits(model64, input_ids=PROMPT)
        hooks.set_taus(lower)
        second = _logits(model64, input_ids=PROMPT)
        hooks.set_taus(cap.taus)
        assert np.array_equal(_logits(model64, input_ids=PROMPT), first)
        with pytest.raises(InputError, match="same blocks"):
            hooks.set_taus({1: 0.0})
        with pytest.raises(InputError, match="finite"):
            hooks.set_taus({layer: float("nan") for layer in cap.layers})
    assert _largest(first - second) > 1e-3
    assert _largest(second - _reference(model64, replace(cap, taus=lower), PROMPT)) < 1e-9


def test_a_model_whose_blocks_lie_in_several_places_is_capped(
    tiny_llama: Path, model64: Any, cap: Cap, tmp_path: Path
) -> None:
    """Some blocks are read from the disk for each forward, as accelerate does it for models that fit on no device."""
    from accelerate import dispatch_model

    spread = _load(tiny_llama, torch.float64)
    places = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    places |= {f"model.layers.{layer}": "disk" for layer in range(spread.config.num_hidden_layers)}
    places["model.layers.1"] = "cpu"
    spread = dispatch_model(spread, places, main_device="cpu", offload_dir=tmp_path)
    assert next(decoder_blocks(spread).blocks[2].parameters()).is_meta
    plain = _logits(spread, input_ids=PROMPT)
    with capped(spread, cap) as hooks:
        lowered = _logits(spread, input_ids=PROMPT)
        assert hooks.activity.fired > 0
    assert _largest(lowered - _reference(model64, cap, PROMPT)) < 1e-9
    assert _largest(lowered - plain) > 1e-3
    assert np.array_equal(_logits(spread, input_ids=PROMPT), plain)


def _hook_count(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_removal_leaves_the_model_as_it_was(model32: Any, cap: Cap) -> None:
    before, hooks_before, names = _logits(model32, input_ids=PROMPT), _hook_count(model32), set(vars(model32))
    with capped(model32, cap):
        assert not np.array_equal(_logits(model32, input_ids=PROMPT), before)
    assert np.array_equal(_logits(model32, input_ids=PROMPT), before)
    with pytest.raises(IndexError), capped(model32, cap):
        _logits(model32, input_ids=torch.tensor([[10**6]]))  # no such token
    assert np.array_equal(_logits(model32, input_ids=PROMPT), before)
    assert _hook_count(model32) == hooks_before
    assert set(vars(model32)) == names
    hooks = install(model32, cap)
    _logits(model32, input_ids=PROMPT)
    hooks.remove()
    hooks.remove()
    assert hooks.activity.positions == PROMPT.shape[1] * len(cap.layers)
    assert _hook_count(model32) == hooks_before


def test_a_forward_without_every_capped_layer_is_an_error(tiny_llama: Path, cap: Cap) -> None:
    model = _load(tiny_llama, torch.float32)
    with capped(model, cap):
        model.config.num_hidden_layers = 2
        with pytest.raises(IntegrityError, match="layer 2"):
            _logits(model, input_ids=PROMPT)
        model.config.num_hidden_layers = 4
        _logits(model, input_ids=PROMPT)
        decoder = decoder_blocks(model).decoder
        decoder.layers[1]._forward_hooks.clear()
        with pytest.raises(IntegrityError, match="layer 1"):
            _logits(model, input_ids=PROMPT)


def test_a_layer_that_runs_twice_or_alone_is_an_error(tiny_llama: Path, cap: Cap) -> None:
    model = _load(tiny_llama, torch.float32)
    decoder = decoder_blocks(model).decoder
    with capped(model, cap):
        _logits(model, input_ids=PROMPT)
        with pytest.raises(IntegrityError, match="outside"):
            decoder.forward(input_ids=PROMPT)
        decoder.layers[3] = decoder.layers[2]
        with pytest.raises(IntegrityError, match="twice"):
            _logits(model, input_ids=PROMPT)
        decoder.layers[3] = decoder.layers[0]
        _logits(model, input_ids=PROMPT)  # the failed forward left nothing behind


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
    plain = _logits(model, input_ids=tokens)
    with capped(model, cap) as hooks:
        found = _logits(model, input_ids=tokens)
        assert _largest(_stepwise(model, tokens, first=2) - found) < 1e-9
    assert hooks.activity.firing_rate == 1
    assert _largest(found - plain) > 1e-3
    assert _largest(found - _reference_any(model, cap, tokens)) < 1e-9


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
        return _logits(model, input_ids=tokens)
    finally:
        handle.remove()


def test_a_model_with_an_adapter_is_capped(tiny_llama: Path, model64: Any, cap: Cap) -> None:
    peft = pytest.importorskip("peft")
    with capped(model64, cap):
        expected = _logits(model64, input_ids=PROMPT)
    adapted = peft.get_peft_model(_load(tiny_llama, torch.float64), peft.LoraConfig(target_modules=["q_proj"]))
    with capped(adapted.eval(), cap):
        assert _largest(_logits(adapted, input_ids=PROMPT) - expected) < 1e-9  # a new adapter is zero


def test_gradients_pass_through_the_cap(model64: Any, cap: Cap) -> None:
    with capped(model64, cap):
        with torch.inference_mode():
            model64(input_ids=PROMPT)
        embedded = model64.get_input_embeddings()(PROMPT).detach().requires_grad_()
        model64(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad is not None
    assert torch.isfinite(embedded.grad).all()
    model64.zero_grad()
