"""States, answers and projections against the plainest possible computation, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from karma_electric.axis import states
from karma_electric.axis.model import LoadedModel, batches, copy_of, load_model, render
from karma_electric.axis.states import answer_projections, greedy_answers, last_token_states
from karma_electric.capping.formula import unit
from karma_electric.capping.pytorch import decoder_blocks
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import write_manifest
from tests.axis.prompt_files import CONTRAST


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> list[list[int]]:
    return [render(loaded, "Be kind.", text, most_tokens=200, where=text) for text in CONTRAST]


def naive_states(model: Any, token_ids: list[int]) -> NDArray[np.float64]:
    """(n_layers, positions, hidden_size) from one sequence, unpadded, in the model's type."""
    outputs: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _i, output: outputs.append(output[0]))
        for block in decoder_blocks(model).blocks
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([token_ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    found: NDArray[np.float64] = torch.stack(outputs).double().numpy()
    return found


def test_batches_are_padded_on_the_left(loaded: LoadedModel) -> None:
    sequences = [[5, 6], [7, 8, 9, 10], [11]]
    first, second = batches(loaded, sequences, 2)
    assert first.indices == (1, 0)
    assert second.indices == (2,)
    assert first.token_ids.tolist() == [[7, 8, 9, 10], [loaded.pad_id, loaded.pad_id, 5, 6]]
    assert first.mask.tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert first.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 0, 1]]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_last_token_states_are_those_of_each_prompt_alone(
    loaded: LoadedModel, prompts: list[list[int]], batch_size: int
) -> None:
    assert len({len(prompt) for prompt in prompts}) > 3  # so that padding is real
    found = {
        index: state
        for indices, batch in last_token_states(loaded, prompts, batch_size)
        for index, state in zip(indices, batch, strict=True)
    }
    assert sorted(found) == list(range(len(prompts)))
    for index, prompt in enumerate(prompts):
        expected = naive_states(loaded.model, prompt)[:, -1]
        np.testing.assert_allclose(found[index], expected, atol=1e-5)


def test_what_sequences_begin_with_is_computed_once(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    n_shared = states.shared_length(prompts)
    assert 5 < n_shared < min(map(len, prompts))
    assert len({tuple(prompt[:n_shared]) for prompt in prompts}) == 1 < len({prompt[n_shared] for prompt in prompts})
    assert states.shared_length([[1, 2, 3], [1, 2]]) == 1  # something is left of each
    assert states.shared_length([[1, 2], [1, 2]]) == 1
    assert states.shared_length([[1, 2], [3, 4]]) == states.shared_length([[1, 2]]) == 0
    computed: list[int] = []
    hook = loaded.decoder.register_forward_pre_hook(
        lambda _m, _a, inputs: computed.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    list(last_token_states(loaded, prompts, 100))
    hook.remove()
    assert computed == [n_shared, max(map(len, prompts)) - n_shared]


def test_several_devices_share_the_batches(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    """Two copies on the one device that is here; which of them computes a batch changes nothing."""
    twice = replace(loaded, others=(copy_of(loaded, loaded.device),))
    used: set[int] = set()
    for number, each in enumerate((twice, *twice.others)):
        each.decoder.register_forward_pre_hook(lambda _m, _i, number=number: used.add(number))
    found = list(last_token_states(twice, prompts, 1))
    alone = list(last_token_states(loaded, prompts, 1))
    assert [indices for indices, _ in found] == [indices for indices, _ in alone]
    for (_, ours), (_, theirs) in zip(found, alone, strict=True):
        assert torch.equal(ours, theirs)
    answers = greedy_answers(twice, prompts, most_tokens=4, batch_size=2)
    assert answers == greedy_answers(loaded, prompts, most_tokens=4, batch_size=2)
    assert used == {0, 1}


def _greedy(model: Any, prompt: list[int], count: int) -> list[int]:
    """Without a cache, without a batch."""
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_answers_are_greedy_and_stop_before_the_end_token(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    expected = [_greedy(loaded.model, prompt, 8) for prompt in prompts]
    endless = replace(loaded, end_ids=frozenset())
    assert greedy_answers(endless, prompts, most_tokens=8, batch_size=4) == expected
    end = expected[0][4]
    ending = replace(loaded, end_ids=frozenset({end, expected[1][0]}))
    found = greedy_answers(ending, prompts, most_tokens=8, batch_size=4)
    cut = [next((n for n, token in enumerate(answer) if token in ending.end_ids), 8) for answer in expected]
    assert found == [answer[:length] for answer, length in zip(expected, cut, strict=True)]
    assert cut[0] < 8
    assert cut[1] == 0


def test_projections_are_of_the_state_that_holds_the_token(loaded: LoadedModel, prompts: list[list[int]]) -> None:
    answers = [[40 + 3 * n for n in range(length)] for length in (3, 0, 7, 1, 5, 2)]
    dice = np.random.default_rng(0)
    directions = np.stack([unit(dice.normal(size=256)) for _ in range(4)])
    found = answer_projections(loaded, prompts, answers, directions, batch_size=3)
    for prompt, answer, values in zip(prompts, answers, found, strict=True):
        assert values.shape == (len(answer), 4)
        assert values.dtype == np.float32
        held = naive_states(loaded.model, prompt + answer)[:, len(prompt) :]  # (n_layers, answer, hidden_size)
        np.testing.assert_allclose(values, np.einsum("lth,lh->tl", held, directions), atol=1e-4)


def test_a_prompt_is_never_cut(loaded: LoadedModel) -> None:
    length = len(render(loaded, "", "Name three rivers.", most_tokens=500, where="x"))
    assert len(render(loaded, "", "Name three rivers.", most_tokens=length, where="x")) == length
    with pytest.raises(InputError, match=rf"prompt c1: {length} tokens .*max_prompt_tokens is {length - 1}"):
        render(loaded, "", "Name three rivers.", most_tokens=length - 1, where="prompt c1")


def test_the_generation_prompt_is_there_and_an_empty_system_prompt_is_none(loaded: LoadedModel) -> None:
    text = loaded.tokenizer.decode(render(loaded, "", "Hi", most_tokens=500, where="x"))
    assert text == (
        "<|im_start|>system\nYou are a helper<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    text = loaded.tokenizer.decode(render(loaded, "Be kind.", "Hi", most_tokens=500, where="x"))
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user")


def test_states_that_are_not_finite_are_an_error(tiny_llama: Path, prompts: list[list[int]]) -> None:
    broken = load_model(tiny_llama, dtype=torch.float32)
    broken.blocks[2].mlp.down_proj.weight.data[3, 3] = float("nan")  # type: ignore[union-attr, operator]
    with pytest.raises(IntegrityError, match="not finite"):
        greedy_answers(broken, prompts, most_tokens=2, batch_size=4)
    with pytest.raises(IntegrityError, match="not finite"):
        answer_projections(broken, prompts, [[5]] * 6, np.eye(4, 256, dtype=np.float32), 4)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"manifest\.json: cannot be read"):
        load_model(tmp_path)
    write_manifest(tmp_path, {})
    with pytest.raises(IntegrityError, match=r"identity\.repo"):
        load_model(tmp_path)
    write_manifest(tmp_path, {"repo": "test/none"})
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(tmp_path)
