"""The PyTorch hooks against the float64 reference, on a real tiny Llama."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from karma_electric.capping.formula import Cap
from karma_electric.capping.pytorch import CapHooks, capped
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError
from tests.capping.torch_runs import (
    END,
    PROMPT,
    SECOND,
    largest,
    load,
    logits_of,
    outputs_of,
    padded,
    reference_logits,
    stepwise,
)


def _conforms(model: Any, cap: Cap, hooks: type[CapHooks] = CapHooks, given: Cap | None = None) -> bool:
    """Whether `hooks`, installed with `given`, computes what the reference computes with `cap`."""
    reference = reference_logits(model, cap, PROMPT)
    installed = hooks(model, given or cap, "all")
    try:
        return largest(logits_of(model, input_ids=PROMPT) - reference) < 1e-9
    finally:
        installed.remove()


def test_hooks_equal_the_reference_and_change_the_logits(model64: Any, cap: Cap) -> None:
    plain = logits_of(model64, input_ids=PROMPT)
    assert largest(reference_logits(model64, cap, PROMPT) - plain) > 1e-2
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
        found = logits_of(model32, input_ids=PROMPT)
    assert largest(found - reference_logits(model32, cap, PROMPT)) < 1e-4


def test_bf16_stays_below_the_ceiling_to_one_rounding_and_keeps_what_is_below(tiny_llama: Path, cap: Cap) -> None:
    model = load(tiny_llama, torch.bfloat16)
    hard = replace(cap, alpha=1.0)
    first = min(hard.layers)
    before = outputs_of(model, input_ids=PROMPT)[first].double().numpy()
    with capped(model, hard) as hooks:
        after = outputs_of(model, input_ids=PROMPT)
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
    before = outputs_of(model64, input_ids=PROMPT)[first].numpy() @ cap.directions[first].astype(np.float64)
    with capped(model64, cap) as hooks:
        assert hooks.activity == CapActivity(0, 0)
        assert hooks.activity.firing_rate is None
        logits_of(model64, input_ids=PROMPT)
        length = PROMPT.shape[1]
        assert hooks.activity_by_layer()[first] == CapActivity(length, int((before > cap.taus[first]).sum()))
        assert hooks.activity.positions == length * len(cap.layers)
        with torch.inference_mode():
            model64(input_ids=PROMPT)
        assert hooks.activity.positions == 2 * length * len(cap.layers)
        hooks.reset_activity()
        assert hooks.activity == CapActivity(0, 0)


def test_a_left_padded_batch_is_its_rows_and_padding_is_not_counted(model32: Any, cap: Cap) -> None:
    with capped(model32, cap) as hooks:
        alone = [logits_of(model32, input_ids=row)[0] for row in (PROMPT, SECOND)]
        counted = hooks.activity
        hooks.reset_activity()
        together = logits_of(model32, **padded(PROMPT, SECOND))
        assert hooks.activity == counted
    assert counted.positions == (PROMPT.shape[1] + SECOND.shape[1]) * len(cap.layers)
    assert largest(together[0] - alone[0]) < 1e-4
    assert largest(together[1, -SECOND.shape[1] :] - alone[1]) < 1e-4


def test_a_kv_cache_changes_nothing(model32: Any, cap: Cap) -> None:
    with capped(model32, cap) as hooks:
        whole = logits_of(model32, input_ids=PROMPT, use_cache=False)
        counted = hooks.activity
        hooks.reset_activity()
        assert largest(stepwise(model32, PROMPT, first=3) - whole) < 1e-4
        assert hooks.activity == counted


def test_generate_works_and_counts_real_positions(model32: Any, cap: Cap) -> None:
    batch = padded(PROMPT, SECOND)
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": END}
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with capped(model32, cap) as hooks:
        together = model32.generate(**inputs, **settings)
        assert hooks.activity.positions == (8 + 4 + 2 * 4) * len(cap.layers)  # the last token is never an input
        alone = model32.generate(SECOND, attention_mask=torch.ones_like(SECOND), **settings)
    assert together[1, 8:].tolist() == alone[0, 4:].tolist()


def test_scope_generated_leaves_the_prompt_alone(model32: Any, cap: Cap) -> None:
    plain = logits_of(model32, input_ids=PROMPT)
    with capped(model32, cap) as hooks:
        everywhere = stepwise(model32, PROMPT, first=5)
    with capped(model32, cap, scope="generated") as hooks:
        found = stepwise(model32, PROMPT, first=5)
        assert hooks.activity.positions == 3 * len(cap.layers)
    assert largest(found[:, :5] - plain[:, :5]) < 1e-4
    assert largest(found[:, 5:] - plain[:, 5:]) > 1e-2
    assert largest(found[:, 5:] - everywhere[:, 5:]) > 1e-3


def test_scope_generated_refuses_what_it_cannot_tell(model32: Any, cap: Cap) -> None:
    with capped(model32, cap, scope="generated"):
        with pytest.raises(InputError, match="use_cache=True"):
            logits_of(model32, input_ids=PROMPT, use_cache=False)
        cache = transformers.DynamicCache(config=model32.config)
        logits_of(model32, input_ids=PROMPT, past_key_values=cache)
        with pytest.raises(InputError, match="4 tokens on a cache of 8"):
            logits_of(model32, input_ids=SECOND, past_key_values=cache)


def test_ceilings_can_change_between_calls(model64: Any, cap: Cap) -> None:
    lower = {layer: tau - 1 for layer, tau in cap.taus.items()}
    with capped(model64, cap) as hooks:
        first = logits_of(model64, input_ids=PROMPT)
        hooks.set_taus(lower)
        second = logits_of(model64, input_ids=PROMPT)
        hooks.set_taus(cap.taus)
        assert np.array_equal(logits_of(model64, input_ids=PROMPT), first)
        with pytest.raises(InputError, match="same blocks"):
            hooks.set_taus({1: 0.0})
        with pytest.raises(InputError, match="finite"):
            hooks.set_taus({layer: float("nan") for layer in cap.layers})
    assert largest(first - second) > 1e-3
    assert largest(second - reference_logits(model64, replace(cap, taus=lower), PROMPT)) < 1e-9
