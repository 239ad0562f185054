"""The capability suite: made by rule, and right."""

from __future__ import annotations

import re
from collections import Counter

from karma_electric.canonical import write_json_lines
from karma_electric.suites.capability import ITEMS_PER_KIND, OPTIONS, capability_items
from tests.suites.suite_files import SHIPPED_SUITES


def test_the_shipped_file_is_what_the_rules_make() -> None:
    assert (SHIPPED_SUITES / "capability.jsonl").read_bytes() == write_json_lines(capability_items())


def test_every_kind_has_its_share_and_the_right_option_stands_everywhere() -> None:
    items = capability_items()
    assert len(items) >= 400
    assert set(Counter(item["category"] for item in items).values()) == {ITEMS_PER_KIND}
    assert {len(item["options"]) for item in items} == {OPTIONS}
    assert all(len(set(item["options"])) == OPTIONS for item in items)
    assert len({item["question"] for item in items}) == len(items)
    places = Counter(item["answer"] for item in items)
    assert max(places.values()) < 0.35 * len(items)


def test_what_can_be_computed_is_right() -> None:
    operations = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    checked = 0
    for item in capability_items():
        right = item["options"][item["answer"]]
        if found := re.fullmatch(r"What is (\d+) (plus|minus|times) (\d+)\?", item["question"]):
            assert int(right) == operations[found[2]](int(found[1]), int(found[3]))
        elif found := re.fullmatch(r"Which of these numbers is the (largest|smallest): (.+)\?", item["question"]):
            numbers = [int(number) for number in found[2].split(", ")]
            assert int(right) == (max(numbers) if found[1] == "largest" else min(numbers))
        elif found := re.fullmatch(r"Which number comes next: (.+)\?", item["question"]):
            shown = [int(number) for number in found[1].split(", ")]
            assert int(right) - shown[-1] == shown[-1] - shown[-2] == shown[1] - shown[0]
        else:
            continue
        checked += 1
    assert checked == 5 * ITEMS_PER_KIND
