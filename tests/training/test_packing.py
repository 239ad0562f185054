from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from karma_electric.training.packing import PackedStep, StepCollator, StepOrder, pack, packed_row, step_loader
from karma_electric.training.rendering import IGNORED_LABEL, RenderedExample, render_examples
from karma_electric.training.trainer import check_rows
from tests.training.sets import examples


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 120), st.integers(1, 4))
def test_every_sequence_is_in_one_row_within_the_budget(lengths: list[int], budget: int, processes: int) -> None:
    shares = pack(lengths, budget, processes=processes)
    assert len(shares) == processes
    assert len({len(rows) for rows in shares}) == 1
    rows = [row for share in shares for row in share]
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    assert all(len(row) == 1 or sum(lengths[place] for place in row) <= budget for row in rows)


def test_a_step_that_fits_is_one_row() -> None:
    assert pack([5, 9, 2], 16) == [[[0, 1, 2]]]
    assert pack([5, 9, 2], 15) == [[[1], [0, 2]]]


@pytest.fixture(scope="module")
def rendered(tiny_llama: Path) -> list[RenderedExample]:
    return render_examples(examples(10), AutoTokenizer.from_pretrained(tiny_llama), max_length=128, where="set")


def test_labels_are_the_answers_and_never_cross_a_border(rendered: list[RenderedExample]) -> None:
    row = packed_row(rendered, range(len(rendered)))
    learned = dict(zip(row.learned.tolist(), row.targets.tolist(), strict=True))
    start = 0
    for example in rendered:
        for place, label in enumerate(example.labels):
            if place:
                assert learned.get(start + place - 1, IGNORED_LABEL) == label
        assert start + len(example.input_ids) - 1 not in learned  # the last token has nothing of its own to predict
        start += len(example.input_ids)
    assert len(learned) == sum(sum(example.assistant_mask) for example in rendered)
    assert row.borders.tolist()[-1] == start == sum(row.lengths) == len(row.input_ids)


def test_a_row_can_learn_nothing(rendered: list[RenderedExample]) -> None:
    row = packed_row(rendered[:1], [1], learn=False)
    assert (len(row.learned), len(row.targets)) == (0, 0)


def steps_of(rendered: list[RenderedExample], *, epoch: int = 0, budget: int = 128, **share: int) -> list[PackedStep]:
    loader, order = step_loader(StepCollator(rendered, budget, seed=7, **share), 4)
    order.steps_done = lambda: epoch * len(order)
    return [item["step"] for item in loader]


def test_an_epoch_has_every_sequence_once_in_an_order_of_its_own(rendered: list[RenderedExample]) -> None:
    epochs = [steps_of(rendered, epoch=epoch) for epoch in (0, 1)]
    labels_of = {example.input_ids: example.labels for example in rendered}
    for steps in epochs:
        assert [step.sequences for step in steps] == [4, 4, 2]
        assert check_rows(steps, labels_of) == len(rendered)
        assert sum(step.tokens for step in steps) == sum(len(example.input_ids) for example in rendered)
        assert sum(step.learned_tokens for step in steps) == sum(sum(e.assistant_mask) for e in rendered)
    assert epochs[0][0].tokens != epochs[1][0].tokens
    assert list(StepOrder(10, 4, 7)) == list(StepOrder(10, 4, 7)) != list(StepOrder(10, 4, 8))


@pytest.mark.parametrize("budget", [64, 128, 10_000])
def test_budget_and_processes_change_neither_step_nor_dropout(rendered: list[RenderedExample], budget: int) -> None:
    def tokens(steps: list[PackedStep]) -> list[set[tuple[int, int, int]]]:
        return [
            {
                key
                for row in step.rows
                if len(row.learned)
                for key in zip(
                    row.dropout_keys.tolist(), row.input_ids.tolist(), row.position_ids.tolist(), strict=True
                )
            }
            for step in steps
        ]

    alone = steps_of(rendered)
    shares = [steps_of(rendered, budget=budget, rank=rank, processes=3) for rank in range(3)]
    assert [len({len(share[number].rows) for share in shares}) for number in range(3)] == [1, 1, 1]
    together = [set.union(*parts) for parts in zip(*(tokens(share) for share in shares), strict=True)]
    assert together == tokens(alone)
    for number, step in enumerate(alone):
        assert {share[number].learned_tokens for share in shares} == {step.learned_tokens}


def test_every_wrong_row_is_caught(rendered: list[RenderedExample]) -> None:
    labels_of = {example.input_ids: example.labels for example in rendered}
    (step,) = steps_of(rendered[:3], budget=1000)
    assert check_rows([step], labels_of) == 3
    (row,) = step.rows
    for place in range(len(row.learned)):
        for name in ("learned", "targets"):
            changed = getattr(row, name).clone()
            changed[place] += 1
            wrong = type(row)(**{field: getattr(row, field) for field in row.__slots__} | {name: changed})
            with pytest.raises(RuntimeError, match="not what was rendered"):
                check_rows([PackedStep((wrong,), 0, 0, 0)], labels_of)
