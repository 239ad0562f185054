"""The trie over the options: every inner node is decoded, and no branch twice."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.engines.llama_cpp_context import TokenPath, group_paths, leading_parts
from karma_electric.engines.llama_cpp_decoder import BATCH_TOKENS, MAX_BRANCHES
from karma_electric.engines.llama_cpp_sequence import common_length
from karma_electric.engines.option_scores import branches
from karma_electric.engines.sampling import log_softmax

TOKENS = st.integers(0, 3)
TAILS = st.lists(st.lists(TOKENS, min_size=1, max_size=5).map(tuple), min_size=1, max_size=80)


@given(TAILS)
def test_branches_cover_every_inner_node_and_none_contains_another(tails: list[TokenPath]) -> None:
    paths = branches(tails)
    needed = {tail[:length] for tail in tails for length in range(1, len(tail))}
    assert set(leading_parts(paths)) == needed
    assert not any(a != b and b[: len(a)] == a for a in paths for b in paths)
    assert len(paths) == len(set(paths))


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
