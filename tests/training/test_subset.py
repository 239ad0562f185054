from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.conversation import Example, Message
from karma_electric.training.subset import allot, stratified_subset

SOURCES = ("original", "v7-patch", "v8-patch")
TALK = (Message("user", "Hello"), Message("assistant", "Good day."))


def example(number: int, category: str = "a", source: str = "original") -> Example:
    return Example(id=f"{category}-{number:03d}", source=source, category=category, conversation=TALK)


def ids(examples: Iterable[Example]) -> set[str]:
    return {item.id for item in examples}


rows = st.lists(
    st.builds(example, st.integers(0, 999), st.sampled_from("abcd"), st.sampled_from(SOURCES)),
    min_size=1,
    max_size=80,
    unique_by=lambda item: item.id,
)


@given(rows, st.integers(1, 90), st.integers(0, 3))
def test_a_subset_has_the_size_and_the_order_of_the_set(examples: list[Example], size: int, seed: int) -> None:
    chosen = stratified_subset(examples, size, seed=seed)
    assert len(chosen) == min(size, len(examples))
    assert chosen == [item for item in examples if item in chosen]
    assert ids(stratified_subset(examples[::-1], size, seed=seed)) == ids(chosen)


@given(rows, st.integers(1, 90))
def test_every_stratum_is_represented_while_there_is_room(examples: list[Example], size: int) -> None:
    strata = {(item.category, item.source) for item in examples}
    chosen = stratified_subset(examples, size, seed=1)
    if size >= len(strata):
        assert {(item.category, item.source) for item in chosen} == strata


@given(st.dictionaries(st.tuples(st.text(max_size=2), st.text(max_size=2)), st.integers(1, 40), min_size=1), st.data())
def test_shares_are_proportional(counts: dict[tuple[str, str], int], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, sum(counts.values())))
    allotment = allot(counts, size)
    least = 1 if size >= len(counts) else 0
    rest, total = size - least * len(counts), sum(counts.values()) - least * len(counts)
    assert sum(allotment.values()) == size
    for stratum, count in counts.items():
        share = least + (rest * (count - least) / total if total else 0)
        assert abs(allotment[stratum] - share) < 1
        assert allotment[stratum] <= count


@given(rows, st.integers(1, 80), st.sampled_from("abcd"), st.sampled_from(SOURCES))
def test_a_row_more_changes_little(examples: list[Example], size: int, category: str, source: str) -> None:
    more = [*examples, example(1000, category, source)]
    before, after = (ids(stratified_subset(part, size, seed=7)) for part in (examples, more))
    assert len(before ^ after) <= 10  # of up to 80, and mostly 2; a fresh sample would change about half


def test_a_row_more_moves_at_most_one_out_and_one_in() -> None:
    before = [example(number) for number in range(200)]
    for number in range(1000, 1020):
        after = [*before, example(number)]
        moved = ids(stratified_subset(before, 60, seed=7)) ^ ids(stratified_subset(after, 60, seed=7))
        assert len(moved) in {0, 2}


def test_an_edited_row_changes_nothing_else() -> None:
    examples = [example(number) for number in range(40)]
    edited = [*examples[:5], Example("a-005", "original", "a", (TALK[0], Message("assistant", "Well?"))), *examples[6:]]
    assert ids(stratified_subset(examples, 10, seed=3)) == ids(stratified_subset(edited, 10, seed=3))


def test_the_seed_chooses_and_none_takes_all() -> None:
    examples = [example(number) for number in range(40)]
    assert ids(stratified_subset(examples, 10, seed=1)) != ids(stratified_subset(examples, 10, seed=2))
    assert stratified_subset(examples, None, seed=1) == examples


def test_each_version_s_patches_are_represented() -> None:
    """One v8 patch row among two hundred others is in a subset of twenty; a row of another kind need not be."""
    examples = [example(number) for number in range(200)] + [example(900, source="v8-patch")]
    chosen = stratified_subset(examples, 20, seed=1)
    assert Counter(item.source for item in chosen) == {"original": 19, "v8-patch": 1}
    ordinary = [example(number) for number in range(200)] + [example(900, source="book")]
    absent = [seed for seed in range(10) if "a-900" not in ids(stratified_subset(ordinary, 20, seed=seed))]
    assert absent


@pytest.mark.parametrize("source", ["v8-patches", "av8-patch", "patch", "v8-patch "])
def test_only_patch_sources_have_a_stratum_of_their_own(source: str) -> None:
    examples = [example(number) for number in range(30)] + [example(900 + i, source=source) for i in range(30)]
    plain = [example(number) for number in range(30)] + [example(900 + i) for i in range(30)]
    assert ids(stratified_subset(examples, 9, seed=4)) == ids(stratified_subset(plain, 9, seed=4))
