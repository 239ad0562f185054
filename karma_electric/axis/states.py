"""What the decoder blocks put out: last-token states of prompts, and projections of answer tokens."""

from __future__ import annotations

import contextlib
import copy
import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from karma_electric.axis.model import Batch, LoadedModel, batches
from karma_electric.errors import IntegrityError

T = TypeVar("T")
Progress = Callable[[int], None]  # called with the number of sequences done
BatchStates = tuple[tuple[int, ...], Tensor]  # where the sequences stood, and (batch, n_layers, hidden_size)


def last_token_states(
    loaded: LoadedModel, sequences: Sequence[Sequence[int]], batch_size: int
) -> Iterator[BatchStates]:
    """Yield (indices, states (batch, n_layers, hidden_size) float32) for each batch of sequences.

    Layer i is the output of decoder block i (0-based), before the final norm, at the sequence's last token. What all
    sequences begin with, such as a system prompt, is computed once. The states stay on the model's device, and nobody
    waits for them: that they are finite is for the caller to check.
    """
    n_shared = shared_length(sequences)
    prefixes = {
        each.device: read_prefix(each, sequences[0][:n_shared]) if n_shared else None
        for each in (loaded, *loaded.others)
    }

    def last_states(model: LoadedModel, batch: Batch) -> Tensor:
        return torch.stack(_run(model, batch, lambda _layer, hidden: hidden[:, -1].float(), prefixes[model.device]), 1)

    rests = [sequence[n_shared:] for sequence in sequences]
    for batch, states in _over_devices(loaded, batches(loaded, rests, batch_size), last_states):
        yield batch.indices, states


def greedy_answers(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    *,
    most_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[list[int]]:
    """The greedy answer to each prompt, at most `most_tokens`, without the token that ends it; it may be empty."""
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0

    def answer_all(model: LoadedModel, batch: Batch) -> list[list[int]]:
        return _answer(model, batch, most_tokens)

    for batch, found in _over_devices(loaded, batches(loaded, prompts, batch_size), answer_all):
        for row, answer in zip(batch.indices, found, strict=True):
            answers[row] = answer
        done += len(batch.indices)
        if progress:
            progress(done)
    return answers


def answer_projections(
    loaded: LoadedModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    directions: NDArray[np.float32],
    batch_size: int,
) -> list[NDArray[np.float32]]:
    """<h, v> of every answer token in every layer: for each answer an array (answer tokens, n_layers).

    `directions` (n_layers, hidden_size) are of norm 1. The state is the one at the position that HOLDS the token, so a
    state that has seen it: what a cap acts on when generation feeds the token back. The whole of prompt and answer goes
    through the model at once, without a cache.
    """
    axes = torch.from_numpy(directions).to(loaded.device, torch.float64)
    found = [np.empty((0, loaded.n_layers), np.float32) for _ in prompts]
    asked = [index for index, answer in enumerate(answers) if answer]
    sequences = [[*prompts[index], *answers[index]] for index in asked]
    for batch in batches(loaded, sequences, batch_size):
        lengths = [len(answers[asked[row]]) for row in batch.indices]
        width = max(lengths)

        def project(layer: int, hidden: Tensor, width: int = width) -> Tensor:
            return (hidden[:, -width:].double() @ axes[layer]).float()  # (batch, width)

        projections = torch.stack(_run(loaded, batch, project), dim=-1).cpu()  # (batch, width, n_layers)
        for row, length, values in zip(batch.indices, lengths, projections, strict=True):
            refuse_non_finite(values[-length:])
            found[asked[row]] = values[-length:].numpy()
    return found


def answer_mean_states(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], batch_size: int
) -> Iterator[BatchStates]:
    """Yield (indices, states (batch, n_layers, hidden_size)) for each batch: means over the answers, none empty.

    The state of a token is the one at the position that holds it, as in `answer_projections`. As with
    `last_token_states`, that they are finite is for the caller to check.
    """
    sequences = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    for batch in batches(loaded, sequences, batch_size):
        lengths = torch.tensor([len(answers[index]) for index in batch.indices], device=loaded.device)
        width = int(lengths.max())
        held = torch.arange(width, device=loaded.device)[None, :] >= width - lengths[:, None]  # (batch, width)
        weights = held.double() / lengths[:, None]

        def mean(_layer: int, hidden: Tensor, width: int = width, weights: Tensor = weights) -> Tensor:
            return torch.einsum("bwh,bw->bh", hidden[:, -width:].double(), weights).float()

        yield batch.indices, torch.stack(_run(loaded, batch, mean), dim=1)


def _answer(loaded: LoadedModel, batch: Batch, most_tokens: int) -> list[list[int]]:
    """Greedy decoding of one batch; a row that has ended is carried along and ignored."""
    from transformers import DynamicCache

    answers: list[list[int]] = [[] for _ in batch.indices]
    open_rows = set(range(len(answers)))
    cache = DynamicCache(config=loaded.model.config)
    inputs, mask, positions = batch.token_ids, batch.mask, batch.position_ids
    for _ in range(most_tokens):
        with torch.inference_mode():
            logits = loaded.model(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]  # (batch, vocabulary)
        if not torch.isfinite(logits).all():
            raise IntegrityError(f"{loaded.name}: the logits are not finite; train or merge the model again")
        chosen = logits.argmax(-1)
        for row, token in enumerate(chosen.tolist()):
            if row in open_rows and token not in loaded.end_ids:
                answers[row].append(token)
            else:
                open_rows.discard(row)
        if not open_rows:
            break
        inputs = chosen[:, None]
        mask = torch.cat([mask, torch.ones_like(inputs)], dim=1)
        positions = positions[:, -1:] + 1
    return answers


def _over_devices(
    loaded: LoadedModel, found: Iterable[Batch], work: Callable[[LoadedModel, Batch], T]
) -> Iterator[tuple[Batch, T]]:
    """Each batch with what `work` makes of it, in order. Where the model is on several devices, they share them."""
    models = (loaded, *loaded.others)
    if len(models) == 1:
        for batch in found:
            yield batch, work(loaded, batch)
        return
    free: queue.SimpleQueue[LoadedModel] = queue.SimpleQueue()
    for model in models:
        free.put(model)

    def on_a_free_one(batch: Batch) -> tuple[Batch, T]:
        model = free.get()
        try:
            return batch, work(model, batch.to(model.device))
        finally:
            free.put(model)

    with ThreadPoolExecutor(len(models)) as pool:
        yield from pool.map(on_a_free_one, found)


def shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences begin with; at least one of each is left. 0 where sharing would save nothing."""
    if len(sequences) < 2:
        return 0
    most = min(len(sequence) for sequence in sequences) - 1
    first, last = min(map(list, sequences)), max(map(list, sequences))  # by their tokens: all others lie between
    return next((place for place in range(most) if first[place] != last[place]), most)


def read_prefix(loaded: LoadedModel, token_ids: Sequence[int]) -> Any:
    """The keys and values of `token_ids`, as a cache of one row."""
    from transformers import DynamicCache

    cache = DynamicCache(config=loaded.model.config)
    with torch.inference_mode():
        loaded.decoder(
            input_ids=torch.tensor([list(token_ids)], device=loaded.device), past_key_values=cache, use_cache=True
        )
    return cache


def _run(loaded: LoadedModel, batch: Batch, keep: Callable[[int, Tensor], Tensor], prefix: Any = None) -> list[Tensor]:
    """One forward of the decoder, without the language-model head; `keep` of each block's output, by layer.

    `prefix` has the keys and values of what stands before every row of the batch; it is left as it was.
    """
    kept: list[tuple[int, Tensor]] = []
    inputs = {"attention_mask": batch.mask, "position_ids": batch.position_ids}
    if prefix is not None:
        cache, n_before = copy.deepcopy(prefix), prefix.get_seq_length()
        cache.batch_repeat_interleave(len(batch.indices))
        before = batch.mask.new_ones(len(batch.indices), n_before)
        inputs = {
            "attention_mask": torch.cat([before, batch.mask], dim=1),
            "position_ids": batch.position_ids + n_before,
            "past_key_values": cache,
        }
    with (
        _block_outputs(loaded, lambda layer, hidden: kept.append((layer, keep(layer, hidden)))),
        torch.inference_mode(),
    ):
        loaded.decoder(input_ids=batch.token_ids, use_cache=prefix is not None, **inputs)
    if [layer for layer, _ in kept] != list(range(loaded.n_layers)):
        raise IntegrityError(
            f"{loaded.name}: {len(kept)} blocks ran, expected each of {loaded.n_layers} once, in order"
        )
    return [value for _, value in kept]


@contextlib.contextmanager
def _block_outputs(loaded: LoadedModel, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Show each block's output (batch, positions, hidden_size) to `see`; blocks run in order."""

    def hook(layer: int, output: Tensor | tuple[Tensor, ...]) -> None:
        see(layer, output[0] if isinstance(output, tuple) else output)

    handles = [
        block.register_forward_hook(lambda _module, _inputs, output, layer=layer: hook(layer, output))
        for layer, block in enumerate(loaded.blocks)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def refuse_non_finite(values: Tensor) -> None:
    """Raise IntegrityError where `values`, or what they are the sum of, are not all finite."""
    if not torch.isfinite(values).all():
        raise IntegrityError("a hidden state is not finite; train or merge the model again")
