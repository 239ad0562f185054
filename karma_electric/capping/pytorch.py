"""Activation capping in PyTorch: forward hooks on the decoder blocks of any Hugging Face decoder model.

The formula stands in karma_electric/capping/formula.py. Here it is computed in float32 (float64 for a float64 model)
and cast back to the model's type, so a bf16 state may end one bf16 rounding above its ceiling.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from karma_electric.capping.formula import Cap
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError, IntegrityError

Scope = Literal["all", "generated"]

_BLOCK_LIST_NAMES = ("layers", "h", "blocks")


@dataclass(frozen=True)
class DecoderBlocks:
    """A model's decoder, its blocks in order, and the width of the states between them."""

    decoder: Any  # an nn.Module
    blocks: nn.ModuleList
    hidden_size: int


def decoder_blocks(model: nn.Module) -> DecoderBlocks:
    """Find the decoder blocks of a Hugging Face model, PEFT-wrapped or not. Raises InputError where there are none."""
    core: Any = model
    if hasattr(core, "get_base_model"):
        core = core.get_base_model()
    if not hasattr(core, "get_decoder"):
        raise InputError(f"{type(core).__name__} has no get_decoder(); expected a Hugging Face decoder model")
    decoder = core.get_decoder()
    expected = getattr(decoder.config, "num_hidden_layers", None)
    lists = {
        name: child
        for name, child in decoder.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == expected
    }
    names = [name for name in lists if len(lists) == 1 or name in _BLOCK_LIST_NAMES]
    if len(names) != 1:
        raise InputError(
            f"{type(core).__name__}: found {len(lists)} lists of {expected} blocks in {type(decoder).__name__}, "
            "expected one; this architecture is not supported"
        )
    return DecoderBlocks(decoder, lists[names[0]], int(decoder.config.hidden_size))


@contextlib.contextmanager
def capped(model: nn.Module, cap: Cap, *, scope: Scope = "all") -> Iterator[CapHooks]:
    """Cap `model` inside the block; see `install`. Afterwards the model is as it was."""
    hooks = install(model, cap, scope=scope)
    try:
        yield hooks
    finally:
        hooks.remove()


def install(model: nn.Module, cap: Cap, *, scope: Scope = "all") -> CapHooks:
    """Cap the output of every block that `cap` names, from now until `remove()` of what is returned.

    Scope `all` caps every position, the prompt included, as the llama.cpp path does. Scope `generated` leaves the
    prompt as it is and caps positions that hold generated tokens; it needs a KV cache that is empty when the prompt
    comes.

    Raises InputError where the model lacks a block, has another hidden size, or is capped already. While installed,
    a forward in which a capped block did not run exactly once raises IntegrityError.
    """
    return CapHooks(model, cap, scope)


@dataclass
class _Forward:
    """One pass through the decoder: which positions count, and which blocks have run."""

    real: Tensor | None  # (batch, positions) bool; None: no padding is known
    acts: bool
    seen: set[int] = field(default_factory=set)


class CapHooks:
    """An installed cap: its activity so far, its thresholds, and its removal."""

    def __init__(self, model: nn.Module, cap: Cap, scope: Scope) -> None:
        if scope not in ("all", "generated"):
            raise InputError(f"scope is {scope!r}, expected 'all' or 'generated'")
        found = decoder_blocks(model)
        _check_fit(cap, found)
        self._cap = cap
        self._scope = scope
        self._decoder = found.decoder
        self._signature = inspect.signature(found.decoder.forward)
        self._directions: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}
        self._fired: dict[int, Tensor] = {}
        self._positions: dict[int, Tensor] = {}
        self._forward: _Forward | None = None
        self._handles = [
            found.decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            *(found.blocks[layer].register_forward_hook(partial(self._cap_block, layer)) for layer in cap.layers),
            found.decoder.register_forward_hook(self._end),
        ]

    @property
    def cap(self) -> Cap:
        """What is in force."""
        return self._cap

    @property
    def activity(self) -> CapActivity:
        """Positions and firings over all capped layers since the start or the last reset; padding is not counted."""
        by_layer = self.activity_by_layer().values()
        return CapActivity(sum(a.positions for a in by_layer), sum(a.fired for a in by_layer))

    def activity_by_layer(self) -> dict[int, CapActivity]:
        """The same for each layer that has run."""
        return {
            layer: CapActivity(int(self._positions[layer]), int(self._fired[layer])) for layer in sorted(self._fired)
        }

    def reset_activity(self) -> None:
        """Count from zero."""
        self._fired.clear()
        self._positions.clear()

    def set_taus(self, taus: Mapping[int, float]) -> None:
        """Other ceilings, for the same layers, from the next forward on."""
        self._cap = dataclasses.replace(self._cap, taus=dict(taus))

    def remove(self) -> None:
        """Take the hooks off. The counts stay readable; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._directions.clear()

    def _begin(self, _decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        inputs = arguments.get("input_ids")
        length = (arguments["inputs_embeds"] if inputs is None else inputs).shape[1]
        cache = arguments.get("past_key_values")
        past = 0 if cache is None else int(cache.get_seq_length())
        real = _real_positions(arguments.get("attention_mask"), past, length)
        acts = self._scope == "all" or self._holds_generated_tokens(arguments, past, length)
        self._forward = _Forward(real, acts)

    def _holds_generated_tokens(self, arguments: Mapping[str, Any], past: int, length: int) -> bool:
        """Whether the positions of this forward hold generated tokens; refuses where that cannot be known."""
        use_cache = arguments.get("use_cache")
        if use_cache is None:
            use_cache = getattr(self._decoder.config, "use_cache", False)
        if arguments.get("past_key_values") is None and not use_cache:
            raise InputError("scope 'generated' needs use_cache=True: without a cache prompt and answer look the same")
        if past and length != 1:
            raise InputError(
                f"scope 'generated': {length} tokens on a cache of {past} may be prompt or answer; "
                "start with an empty cache, give the prompt at once, and generate token by token"
            )
        return past > 0

    def _cap_block(self, layer: int, _block: nn.Module, _inputs: Any, output: Any) -> Any:
        forward = self._forward
        if forward is None:
            raise IntegrityError(f"layer {layer} ran outside its decoder's forward; its cap cannot be accounted for")
        if layer in forward.seen:
            raise IntegrityError(f"layer {layer} ran twice in one forward; expected once")
        forward.seen.add(layer)
        if not forward.acts:
            return output
        hidden = output[0] if isinstance(output, tuple) else output  # (batch, positions, hidden_size)
        lowered = self._lower(layer, hidden, forward.real)
        return (lowered, *output[1:]) if isinstance(output, tuple) else lowered

    def _lower(self, layer: int, hidden: Tensor, real: Tensor | None) -> Tensor:
        """The formula, and the counts."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        direction = self._direction(layer, hidden.device, dtype)  # (hidden_size,)
        wide = hidden.to(dtype)
        # A sum of products rather than a matrix product, which backends may round to TF32 or bf16.
        excess = (wide * direction).sum(-1).sub(self._cap.taus[layer]).clamp(min=0)  # (batch, positions)
        self._count(layer, excess > 0, real)
        return (wide - self._cap.alpha * excess[..., None] * direction).to(hidden.dtype)

    def _count(self, layer: int, fires: Tensor, real: Tensor | None) -> None:
        where = torch.ones_like(fires) if real is None else real.to(fires.device).expand_as(fires)
        # Out of place: a counter made under inference_mode cannot be updated outside it.
        self._fired[layer] = self._fired.get(layer, 0) + (fires & where).sum()
        self._positions[layer] = self._positions.get(layer, 0) + where.sum()

    def _direction(self, layer: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        key = (layer, device, dtype)
        if key not in self._directions:
            with torch.inference_mode(False):
                direction = torch.tensor(self._cap.directions[layer])
                self._directions[key] = direction.to(device=device, dtype=dtype)
        return self._directions[key]

    def _end(self, _decoder: nn.Module, _inputs: Any, _output: Any) -> None:
        forward, self._forward = self._forward, None
        missing = sorted(set(self._cap.layers) - (forward.seen if forward else set()))
        if missing:
            raise IntegrityError(f"the cap did not run in layer {missing[0]} of this forward; its output is not capped")


def _check_fit(cap: Cap, found: DecoderBlocks) -> None:
    last = cap.layers[-1]
    if not 0 <= cap.layers[0] <= last < len(found.blocks):
        raise InputError(
            f"the cap names layer {last if last >= len(found.blocks) else cap.layers[0]}, the model has layers 0 to "
            f"{len(found.blocks) - 1}; use the axis of this model"
        )
    for layer, direction in cap.directions.items():
        if direction.shape != (found.hidden_size,):
            raise InputError(
                f"layer {layer}: the direction has shape {direction.shape}, the model's hidden size is "
                f"{found.hidden_size}; use the axis of this model"
            )
    for block in (found.blocks[layer] for layer in cap.layers):
        for hook in block._forward_hooks.values():
            if isinstance(getattr(getattr(hook, "func", None), "__self__", None), CapHooks):
                raise InputError("the model is capped already; remove that cap first")


def _real_positions(mask: Any, past: int, length: int) -> Tensor | None:
    """(batch, length) bool from a 2-D attention mask over cache and inputs; None for any other kind of mask."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < past + length:
        return None
    return mask[:, past : past + length].bool()
