from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from karma_electric.training_db.near_duplicates import Group, near_duplicates
from karma_electric.training_db.store import open_to_read
from tests.cli.running import ROOT

FROG = (
    "A frog sat in my watering can this morning and looked at me as if I were the guest. I left it there until noon, "
    "watered the beans with a saucepan, and put a flat stone inside so that it can climb out by itself in the evening."
)


def changed(text: str, every: int) -> str:
    return " ".join("besides" if place % every == every - 1 else word for place, word in enumerate(text.split()))


def unlike(count: int) -> list[tuple[str, str]]:
    """Rows of random words, which have no run of three in common."""
    draw = random.Random(5)
    words = [f"word{number}" for number in range(3000)]
    return [(f"row-{number:04}", " ".join(draw.choices(words, k=40))) for number in range(count)]


def groups(*texts: str) -> list[tuple[str, ...]]:
    return [group.ids for group in near_duplicates((str(number), text) for number, text in enumerate(texts))]


@pytest.mark.parametrize(
    "other",
    [
        FROG,
        FROG.upper(),
        FROG.replace(",", " –").replace("'", "’"),
        changed(FROG, 12),
        changed(FROG, 8),
        f"Listen to this. {FROG}",
        FROG.rsplit(" ", 6)[0],
    ],
    ids=[
        "the same",
        "shouted",
        "other signs",
        "every twelfth word",
        "every eighth word",
        "a beginning more",
        "an end less",
    ],
)
def test_near_copies_are_found(other: str) -> None:
    assert groups("Nothing like it at all, just a row about trains.", FROG, other) == [("1", "2")]


def test_what_is_unlike_is_not_grouped() -> None:
    assert groups(FROG, "A frog sat in a can.", changed(FROG, 3), "", "...") == []
    assert near_duplicates(unlike(300)) == []


def test_texts_that_are_too_short_for_runs_are_compared_whole() -> None:
    assert groups("Go on.", "go on", "Go off.") == [("0", "1")]


def test_a_row_is_in_a_group_when_it_is_like_one_of_it() -> None:
    second = changed(FROG, 8)
    third = second.replace("guest", "landlord").replace("stone", "brick").replace("noon", "dusk")
    found = near_duplicates([("c", third), ("a", FROG), ("b", second)])
    assert [group.ids for group in found] == [("c", "a", "b")]
    assert 0.4 <= found[0].likeness < 0.6


def test_the_likeness_is_the_share_of_common_runs() -> None:
    (group,) = near_duplicates([("a", "one two three four five six"), ("b", "one two three four five seven")])
    assert group == Group(("a", "b"), 3 / 5)


def test_one_id_that_stands_twice_is_no_near_duplicate() -> None:
    """A patch that replaces a row is like the row that it replaces."""
    assert near_duplicates([("a", FROG), ("a", changed(FROG, 8))]) == []


def test_a_planted_copy_among_many_rows_is_found() -> None:
    rows = unlike(400)
    rows[17:17] = [("planted", FROG)]
    rows.append(("copy", changed(FROG, 8)))
    assert [group.ids for group in near_duplicates(rows)] == [("planted", "copy")]


def test_many_copies_of_one_row_are_one_group() -> None:
    (group,) = near_duplicates((f"{number}", FROG) for number in range(200))
    assert len(group.ids) == 200
    assert group.likeness == 1


def test_the_result_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import json, sys\nfrom karma_electric.training_db.near_duplicates import near_duplicates\n"
        "rows = json.load(sys.stdin)\nprint([group.ids for group in near_duplicates(rows, least_likeness=0.1)])"
    )
    draw = random.Random(2)
    rows = [(str(number), " ".join(draw.choices("abcdefg", k=12))) for number in range(40)]
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(rows),
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1


def test_the_shipped_rows_are_unlike() -> None:
    from karma_electric.training_db.reading import texts_of_rows

    with open_to_read(ROOT / "data" / "training.db") as connection:
        texts = list(texts_of_rows(connection, ["accepted", "pending"]))
    assert len(texts) > 150
    assert near_duplicates(texts, least_likeness=0.2) == []
