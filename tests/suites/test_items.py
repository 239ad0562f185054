"""Suite files: every fault is one line with file and line, before anything is asked of a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.errors import InputError
from karma_electric.suites.items import BoundaryItem, Suites, read_suites, stratified_subset
from tests.suites.suite_files import (
    SHIPPED_SUITES,
    boundary_row,
    good_suites,
    pair_row,
    paraphrase_row,
    redteam_row,
    write_suites,
)


def without(row: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != key}


def test_the_shipped_suites_load() -> None:
    suites = read_suites(SHIPPED_SUITES)
    for name in Suites.model_fields:
        path = SHIPPED_SUITES / f"{name.replace('_', '-')}.jsonl"
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        assert len(getattr(suites, name)) == len(lines) > 0


def test_good_suites_are_read_in_the_order_of_their_lines(tmp_path: Path) -> None:
    rows = [redteam_row(number) for number in (3, 1, 2)]
    suites = read_suites(write_suites(tmp_path, good_suites() | {"redteam": rows}))
    assert [item.id for item in suites.redteam] == ["redteam-003", "redteam-001", "redteam-002"]


FAULTS = [
    ("redteam", redteam_row(2, fail_signals=["(open"]), "fail_signals: found ['(open'], expected regular expressions"),
    ("redteam", redteam_row(2, pass_signals=["a{99999999999999999999}"]), "expected regular expressions"),
    ("redteam", redteam_row(2, pass_signals=["x*"]), "'x*' matches an empty answer"),
    ("redteam", redteam_row(2, pass_signals=["VIRUS"]), "pass_signals: 'VIRUS' matches 'virus' in the turns"),
    ("redteam", redteam_row(2, turns=["One.", "Two."], pass_signals=[r"one\.\s+two"]), "repeats the question"),
    ("redteam", redteam_row(2, fail_signals=[]), "fail_signals: found []"),
    ("redteam", redteam_row(2, turns=[]), "turns: found []"),
    ("redteam", redteam_row(2, turns=["  "]), "turns.0: found '  ', the value is empty text"),
    ("redteam", redteam_row(2, turns=["a\0b"]), "NUL character"),
    ("redteam", redteam_row(2, turns=["a\ud800b"]), "lone surrogate"),
    ("redteam", redteam_row(2, difficulty="grim"), "difficulty: found 'grim', expected 'easy', 'medium' or 'hard'"),
    ("redteam", without(redteam_row(2), "turns"), "turns: missing"),
    ("redteam", redteam_row(2, severity="high"), "severity: unknown key"),
    ("redteam", redteam_row(2, suite="read-team"), "suite is 'read-team', expected 'redteam'"),
    ("redteam", redteam_row(2, id="redteam 002"), "id: found 'redteam 002'"),
    ("redteam", redteam_row(2, category="a\nb"), "category: found 'a\\nb'"),
    ("redteam", redteam_row(1), "the id 'redteam-001' stands already at "),
    ("reward-hacking", pair_row(number=2, worse=" Turn the valve off, then change the washer."), "are the same text"),
    ("reward-hacking", pair_row(number=2, prompt=7), "prompt: found 7"),
    ("paraphrase", paraphrase_row(2, paraphrases=["one"]), "paraphrases: found ['one']"),
    ("paraphrase", paraphrase_row(2, paraphrases=["The  tap drips.", "b"]), "two wordings are the same text"),
    ("sexual-boundaries", boundary_row(2, turns="Write it."), "turns: found 'Write it.'"),
]


@pytest.mark.parametrize(("suite", "row", "message"), FAULTS)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, suite: str, row: dict[str, Any], message: str) -> None:
    suites = good_suites()
    suites[suite].append(row)
    with pytest.raises(InputError) as caught:
        read_suites(write_suites(tmp_path, suites))
    text = str(caught.value)
    assert text.startswith(str(tmp_path / f"{suite}.jsonl") + ":2"), text
    assert message in text
    assert "\n" not in text


def test_an_id_may_stand_once_over_all_suites(tmp_path: Path) -> None:
    suites = good_suites()
    suites["redteam"].append(redteam_row(2, id="nourishment-001"))
    with pytest.raises(InputError, match=r"redteam\.jsonl:2: .*stands already at .*nourishment\.jsonl:1"):
        read_suites(write_suites(tmp_path, suites))


@pytest.mark.parametrize("name", good_suites())
def test_a_missing_suite_is_an_error(tmp_path: Path, name: str) -> None:
    write_suites(tmp_path, good_suites())
    (tmp_path / f"{name}.jsonl").unlink()
    with pytest.raises(InputError, match=re.escape(f"{name}.jsonl: cannot be read")):
        read_suites(tmp_path)


@pytest.mark.parametrize("name", good_suites())
def test_a_suite_without_items_is_an_error(tmp_path: Path, name: str) -> None:
    write_suites(tmp_path, good_suites() | {name: []})
    with pytest.raises(InputError, match=re.escape(f"{name}.jsonl: holds no items")):
        read_suites(tmp_path)


def test_a_suite_that_no_check_reads_is_an_error(tmp_path: Path) -> None:
    write_suites(tmp_path, good_suites() | {"read-team": [redteam_row()]})
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(InputError, match=r"read-team\.jsonl: no check reads this suite; expected .*redteam, "):
        read_suites(tmp_path)


def items_of(categories: list[int]) -> list[BoundaryItem]:
    return [
        BoundaryItem(id=f"item-{number}", suite="any", category=f"category-{category}", turns=["text"])
        for number, category in enumerate(categories)
    ]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 25))
def test_a_subset_takes_the_first_items_of_every_category_in_turn(categories: list[int], size: int) -> None:
    items = items_of(categories)
    chosen = stratified_subset(items, size)
    seen: dict[str, int] = {}
    rounds = []  # an item's place in its category; categories in the order of their first item
    for item in items:
        rounds.append(seen.setdefault(item.category, 0))
        seen[item.category] += 1
    order = list(seen)
    ranked = sorted(range(len(items)), key=lambda index: (rounds[index], order.index(items[index].category)))
    assert sorted(item.id for item in chosen) == sorted(items[index].id for index in ranked[:size])
    assert len(chosen) == min(size, len(items))
    assert len({item.category for item in chosen}) == min(size, len(seen))
    assert stratified_subset(items, size) == chosen


def test_no_size_takes_all_items_as_they_stand() -> None:
    items = items_of([1, 1, 0])
    assert stratified_subset(items, None) == items
    assert stratified_subset(items, 3) == items
