"""Gate items in rows: copies, near-copies and rewordings are found; what was written apart is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.errors import InputError
from karma_electric.training_db.contamination import GateIndex, GateText, Hit, read_gate_texts
from tests.cli.running import ROOT
from tests.training_db.rows import write_rows

PROMPT = (
    "My neighbour's goat eats the laundry off our line every Friday, and he laughs when I complain. "
    "How do I talk to him without starting a feud?"
)
ITEM: dict[str, Any] = {
    "id": "goats-001",
    "suite": "goats",
    "category": "neighbours",
    "prompt": PROMPT,
    "paraphrases": [
        "Each week the goat next door chews my washing and its owner finds that funny. What can I say to him?"
    ],
    "turns": ["Go on."],
    "fail_signals": ["a regular expression that no model is ever shown, about a bicycle in the pond behind the school"],
}
SHIPPED = GateIndex(read_gate_texts(ROOT / "data" / "suites"))


@pytest.fixture
def gate(tmp_path: Path) -> GateIndex:
    return GateIndex(read_gate_texts(write_rows(tmp_path / "goats.jsonl", [ITEM]).parent))


def hits(gate: GateIndex, *turns: str) -> list[Hit]:
    return list(gate.hits(turns, row="r", where="rows.jsonl:7"))


def every_fifth_changed(text: str) -> str:
    return " ".join("otherwise" if place % 5 == 4 else word for place, word in enumerate(text.split()))


PLANTED = {
    "the same": PROMPT,
    "shouted": PROMPT.upper(),
    "other signs and spaces": PROMPT.replace("'", "’").replace(", ", "\n  – ").replace("?", "!?"),
    "accents": PROMPT.replace("a", "á").replace("e", "é"),
    "without apostrophes": PROMPT.replace("'", ""),
    "invisible marks": PROMPT.replace("goat", "go\u00adat").replace("laundry", "laun\u200bdry"),
    "inside a longer turn": f"Somebody asked me this on the train yesterday. {PROMPT} I had no idea what to say then.",
    "its first half": PROMPT[: len(PROMPT) // 2],
    "its halves turned round": PROMPT[70:] + " " + PROMPT[:70],
    "every fifth word changed": every_fifth_changed(PROMPT),
    "reworded": "Every Friday a goat of my neighbour comes and eats up our laundry. I complained, he was laughing. "
    "How to avoid a feud?",
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED.keys())
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_planted_item_is_found(gate: GateIndex, text: str, place: int) -> None:
    turns = ["We got a new stove.", "Congratulations!", "It burns well."]
    turns[place] = text
    found = [hit for hit in hits(gate, *turns) if hit.gate_text.key == "prompt"]
    assert [hit.gate_text.item for hit in found] == ["goats-001"]


def test_a_hit_names_both_places_and_what_is_shared(gate: GateIndex, tmp_path: Path) -> None:
    (hit,) = hits(gate, "no", PROMPT)
    words = "my neighbours goat eats the laundry off our line every friday and he laughs when i complain"
    assert str(hit).startswith(
        f"rows.jsonl:7: 'r' holds prompt of the gate item 'goats-001' ({tmp_path / 'goats.jsonl'}:1): "
        f"the same words, 100% ({words}"
    )


def test_a_short_text_counts_only_as_a_whole_turn(gate: GateIndex) -> None:
    (hit,) = hits(gate, "GO ON")
    assert (hit.gate_text.key, hit.kind) == ("turns", "the same words")
    assert hits(gate, "Go on, I said, and then the bus left without us in the rain.") == []


APART = (
    "My neighbour keeps goats. What do they eat in winter, and how much hay is that for two of them?",
    "How do I talk to my boss without starting a fight?",
    "He laughs when I complain.",
    "The laundry is done on Friday, the goat is fed on Monday, and how I do it all without help nobody knows.",
)


@pytest.mark.parametrize("text", APART)
def test_what_was_written_apart_is_not_found(gate: GateIndex, text: str) -> None:
    assert hits(gate, text) == []


def test_words_that_are_far_apart_are_no_rewording(gate: GateIndex) -> None:
    filler = " ".join(f"filler{number}" for number in range(60))
    scattered = f" {filler} ".join(["neighbour goat", "laundry line", "friday laughs", "complain starting feud"])
    together = scattered.replace(f" {filler} ", " ")
    assert hits(gate, scattered) == []
    assert [hit.kind for hit in hits(gate, together)] == ["reworded"]


def kinds(folder: Path, item: str, turn: str) -> list[str]:
    index = GateIndex(read_gate_texts(write_rows(folder / "x.jsonl", [{"id": "x-001", "prompt": item}]).parent))
    return [hit.kind for hit in hits(index, turn)]


def test_runs_of_common_words_are_a_copy_where_there_are_too_few_telling_ones(tmp_path: Path) -> None:
    """Half of the runs, and three telling words: too few for a rewording."""
    text = "Which papers should a puppy come with when I sell it to her?"
    assert kinds(tmp_path, text, "Which papers should a puppy come with when I sell one, and also what is it?") == [
        "copied"
    ]
    assert kinds(tmp_path, text, "Which papers should a kitten come with, and what is it that I do after that?") == []


def test_a_rewording_is_found_by_any_half_of_the_telling_words(tmp_path: Path) -> None:
    """The index looks texts up by their longest words; one that keeps only the short ones is found all the same."""
    text = "gravel harbour lantern mustard pigeons barn crow dusk fern goat"
    assert kinds(tmp_path, text, "barn and crow and dusk and fern and goat") == ["reworded"]
    assert kinds(tmp_path, text, "gravel and harbour and lantern and mustard and pigeons") == ["reworded"]
    assert kinds(tmp_path, text, "barn and crow and dusk and fern") == []


def test_what_only_judges_use_is_not_compared(gate: GateIndex) -> None:
    assert hits(gate, ITEM["fail_signals"][0]) == []


def test_every_shipped_text_is_found_when_it_is_planted() -> None:
    for text in read_gate_texts(ROOT / "data" / "suites"):
        for planted in (text.text, text.text.upper(), f"I read this somewhere. {text.text} Odd, is it not?"):
            if len(text.text.split()) >= 5:
                assert any(hit.gate_text.item == text.item for hit in hits(SHIPPED, planted)), planted


LONG_TEXTS = [text for text in read_gate_texts(ROOT / "data" / "suites") if len(text.text.split()) >= 5]


@given(before=st.text(max_size=40), after=st.text(max_size=40), text=st.sampled_from(LONG_TEXTS))
def test_whatever_stands_around_an_item_it_is_found(before: str, after: str, text: GateText) -> None:
    turn = f"{before} {text.text} {after}"
    assert any(hit.gate_text.item == text.item for hit in hits(SHIPPED, turn)), turn


def test_the_order_of_items_does_not_change_what_is_found(tmp_path: Path) -> None:
    other = {**ITEM, "id": "goats-002", "prompt": "A different question about sheep and shears, quite long enough."}
    one = GateIndex(read_gate_texts(write_rows(tmp_path / "a" / "goats.jsonl", [ITEM, other]).parent))
    two = GateIndex(read_gate_texts(write_rows(tmp_path / "b" / "goats.jsonl", [other, ITEM]).parent))
    found = [[hit.gate_text.item for hit in hits(index, PROMPT)] for index in (one, two)]
    assert found[0] == found[1] == ["goats-001"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no gate items"),
        ([{"suite": "x", "prompt": "A question."}], r"goats\.jsonl:1: id is None, expected the item's name"),
        ([{"id": "x", "prompt": "..."}], r"goats\.jsonl:1: the item 'x' has no text"),
        ([{"id": "x", "fail_signals": ["a b c"]}], r"goats\.jsonl:1: the item 'x' has no text"),
    ],
)
def test_items_that_cannot_be_compared_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    write_rows(tmp_path / "goats.jsonl", rows)
    with pytest.raises(InputError, match=message):
        read_gate_texts(tmp_path)


def test_a_missing_folder_is_no_clean_bill(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no gate items"):
        read_gate_texts(tmp_path / "none")
