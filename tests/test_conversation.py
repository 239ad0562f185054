from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.canonical import canonical_json, parse_json_object, write_json_lines
from karma_electric.conversation import Example, Message, parse_conversation, parse_example, read_examples
from karma_electric.errors import InputError

USER = {"role": "user", "content": "Hello"}
ASSISTANT = {"role": "assistant", "content": "Good day."}
SYSTEM = {"role": "system", "content": "Be brief."}

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
    lambda text: bool(text.strip())
)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """An example with or without a system turn, and one to three exchanges."""
    turns = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(TEXT)), Message("assistant", draw(TEXT))]
    return Example(draw(TEXT), draw(TEXT), draw(TEXT), tuple(turns))


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a-001", "source": "test", "category": "greeting", "conversations": [USER, ASSISTANT], **changes}


@given(examples())
def test_a_row_is_read_back_equal(example: Example) -> None:
    read = parse_example(parse_json_object(canonical_json(example.as_row()).encode("utf-8"), "row"), "row")
    assert read == example
    assert read.sha256() == example.sha256()


@given(examples(), st.sampled_from(["id", "source", "category"]))
def test_every_field_counts_in_the_hash(example: Example, field: str) -> None:
    changed = dataclasses.replace(example, **{field: getattr(example, field) + "!"})
    assert changed.sha256() != example.sha256()
    longer = dataclasses.replace(example, conversation=(*example.conversation, Message("user", "!")))
    assert longer.sha256() != example.sha256()


BAD_CONVERSATIONS: dict[str, tuple[Any, str]] = {
    "missing": (None, "conversations is missing"),
    "an empty list": ([], "conversations is an empty list"),
    "a text": ("Hello", "conversations is text"),
    "an object": ({"b": 1}, "conversations is an object with the keys b"),
    "a message that is text": (["Hello"], "message 1: found text, expected an object with exactly role and content"),
    "a message without content": ([{"role": "user"}], "message 1: found an object with the keys role"),
    "a message with a third key": ([USER, {**ASSISTANT, "name": "x"}], "message 2: found an object with the keys"),
    "an unknown role": ([{"role": "human", "content": "x"}], "message 1: role is 'human', expected one of system"),
    "a role that is a list": ([{"role": ["user"], "content": "x"}], "message 1: role is ['user']"),
    "content that is no text": ([{"role": "user", "content": 3}], "content is a value of type int"),
    "empty content": ([{"role": "user", "content": ""}, ASSISTANT], "message 1: content is empty text"),
    "blank content": ([USER, {"role": "assistant", "content": " \n\t"}], "message 2: content is empty text"),
    "a NUL": (
        [{"role": "user", "content": "ab\0c"}, ASSISTANT],
        "message 1: content has a NUL character at position 2",
    ),
    "a lone surrogate": ([USER, {"role": "assistant", "content": "\ud83d x"}], "a lone surrogate at position 0"),
    "the assistant first": ([ASSISTANT, USER], "turn 1 is of role 'assistant', expected 'user'"),
    "two users": ([USER, USER, ASSISTANT], "turn 2 is of role 'user', expected 'assistant'"),
    "a second system turn": ([SYSTEM, USER, SYSTEM, ASSISTANT], "turn 2 is of role 'system'"),
    "a late system turn": ([USER, ASSISTANT, SYSTEM], "turn 3 is of role 'system'"),
    "only a system turn": ([SYSTEM], "the last turn must be the assistant's"),
    "the user last": ([USER, ASSISTANT, USER], "the last turn must be the assistant's"),
}


@pytest.mark.parametrize(("value", "message"), BAD_CONVERSATIONS.values(), ids=BAD_CONVERSATIONS.keys())
def test_a_bad_conversation_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_conversation(value, "set.jsonl:7")
    assert str(caught.value).startswith("set.jsonl:7: ")
    assert message in str(caught.value)


def test_a_surrogate_pair_is_a_character() -> None:
    value = parse_json_object(rb'{"c": [{"role":"user","content":"\ud83d\ude00"}]}', "row")["c"]
    assert parse_conversation([*value, ASSISTANT], "row")[0].content == "😀"


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (row(notes="x"), "set.jsonl:7: unknown key 'notes'; a row has id, source"),
    "a missing id": ({key: value for key, value in row().items() if key != "id"}, "set.jsonl:7: id is missing"),
    "an id that is a number": (row(id=7), "set.jsonl:7: id is a value of type int"),
    "a blank source": (row(source=" "), "set.jsonl:7: source is empty text"),
    "a NUL in the category": (row(category="a\0"), "set.jsonl:7: category has a NUL character at position 1"),
    "a lone surrogate in the id": (row(id="x\udfff"), "set.jsonl:7: id has a lone surrogate at position 1"),
}


@pytest.mark.parametrize(("value", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named(value: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_example(value, "set.jsonl:7")
    assert str(caught.value).startswith(message)


def test_an_error_is_one_short_line_whatever_the_row_holds() -> None:
    long_key = "x\n" * 100_000
    for value in (row(**{long_key: 1}), row(conversations={long_key: 1}), row(conversations=[{"role": long_key}])):
        with pytest.raises(InputError) as caught:
            parse_example(value, "set.jsonl:7")
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400


def test_an_id_that_stands_twice_names_both_lines(tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_bytes(write_json_lines([row(), row(id="b"), row(source="other")]))
    with pytest.raises(InputError, match=r"set\.jsonl:3: the id 'a-001' stands already in line 1"):
        list(read_examples(file))
