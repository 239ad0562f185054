"""The tree of the options: every inner node that counts is decoded, and no branch twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from karma_electric.engines.llama_cpp_context import group_paths, leading_parts
from karma_electric.engines.llama_cpp_decoder import BATCH_TOKENS, MAX_BRANCHES
from karma_electric.engines.llama_cpp_sequence import common_length
from karma_electric.engines.option_tree import OptionTree, TokenPath
from karma_electric.engines.sampling import log_softmax
from karma_electric.errors import InputError

TOKENS = st.integers(0, 3)
TAILS = st.lists(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), min_size=1, max_size=80)


@given(TAILS)
def test_branches_cover_every_inner_node_and_none_contains_another(tails: list[TokenPath]) -> None:
    paths = OptionTree(tails, held=False).leaves
    needed = {tail[:length] for tail in tails for length in range(1, len(tail))}
    assert set(leading_parts(paths)) == needed
    assert not any(a != b and b[: len(a)] == a for a in paths for b in paths)
    assert len(paths) == len(set(paths))


def logits_after(path: TokenPath) -> NDArray[np.float32]:
    """Of four tokens; any, but always the same."""
    return np.random.default_rng([len(path), *path]).normal(size=4).astype(np.float32)


@given(TAILS)
def test_held_options_are_weighed_as_under_a_grammar(tails: list[TokenPath]) -> None:
    ends = [tail for tail in dict.fromkeys(tails) if not any(a != tail and a[: len(tail)] == tail for a in tails)]
    tree = OptionTree(ends, held=True)
    found = tree.log_probabilities({path: logits_after(path) for path in {(), *tree.read}})
    assert sum(np.exp(found)) == pytest.approx(1)
    for tail, value in zip(ends, found, strict=True):
        expected = 0.0
        for index, token in enumerate(tail):
            admitted = sorted({end[index] for end in ends if end[:index] == tail[:index] and len(end) > index})
            expected += log_softmax(logits_after(tail[:index])[admitted])[admitted.index(token)]
        assert value == pytest.approx(expected)
    assert all(len({end[len(path)] for end in ends if end[: len(path)] == path}) > 1 for path in tree.read)


def test_scores_from_1_to_10_need_one_token_behind_the_prompt() -> None:
    digits = [(*map(int, str(score)), 99) for score in range(1, 11)]
    assert OptionTree(digits, held=True).leaves == [(1,)]
    assert len(OptionTree(digits, held=False).read) == 10
    assert OptionTree([(score, 99) for score in range(1, 11)], held=True).leaves == []  # where 10 is one token


def test_held_options_that_begin_with_one_another_are_refused() -> None:
    with pytest.raises(InputError, match="an option begins with another one"):
        OptionTree([(1,), (1, 0)], held=True)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=BATCH_TOKENS).map(tuple), max_size=60))
def test_groups_hold_every_path_in_order_and_fit_into_a_batch(paths: list[TokenPath]) -> None:
    groups = list(group_paths(paths))
    assert [path for group in groups for path in group] == paths
    for group in groups:
        assert 0 < len(group) <= MAX_BRANCHES
        assert len(leading_parts(group)) <= BATCH_TOKENS


@given(st.lists(TOKENS), st.lists(TOKENS), st.lists(TOKENS))
def test_common_length(shared: list[int], first: list[int], second: list[int]) -> None:
    length = common_length([shared + first, shared + second])
    assert length >= len(shared)
    assert (shared + first)[:length] == (shared + second)[:length]
    assert (shared + first)[length : length + 1] != (shared + second)[length : length + 1] or first == second


def test_parents_come_before_children() -> None:
    assert leading_parts([(2, 1), (1, 3)]) == [(1,), (2,), (1, 3), (2, 1)]


def test_log_softmax_of_large_logits() -> None:
    found = log_softmax(np.array([1e4, 1e4, -1e4], np.float32))
    np.testing.assert_allclose(found[:2], [-np.log(2)] * 2)
    assert found[2] < -1e4
