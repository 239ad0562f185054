from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.canonical import (
    canonical_json,
    parse_json_object,
    read_json_lines,
    read_json_object,
    readable_json,
    rounded,
    write_json_lines,
)
from karma_electric.errors import InputError

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=4)

BAD_LINES = {
    "a duplicated key": (b'{"a":1,"a":2}', "the key 'a' stands twice"),
    "a duplicated key, nested": (b'{"x":{"a":1,"b":0,"a":2}}', "the key 'a' stands twice"),
    "NaN": (b'{"a":NaN}', "NaN is not a JSON number"),
    "infinity": (b'{"a":-Infinity}', "-Infinity is not a JSON number"),
    "a number too large for a float": (b'{"a":1e999}', "1e999 is too large"),
    "an integer without end": (b'{"a":' + b"1" * 5000 + b"}", "not JSON"),
    "a list": (b"[1]", "found a list, expected a JSON object"),
    "a text": (b'"a"', "found a str, expected a JSON object"),
    "bad UTF-8": (b'{"a":"\xff"}', "not UTF-8 at byte 6"),
    "deep nesting": (b'{"a":' + b"[" * 100_000, "nested too deeply"),
    "a cut-off line": (b'{"a":', "not JSON"),
    "two objects": (b"{} {}", "not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf{}", "not JSON"),
}


@given(OBJECTS)
def test_canonical_json_is_read_back_equal(value: dict[str, Any]) -> None:
    assert parse_json_object(canonical_json(value).encode("utf-8"), "here") == value


@given(OBJECTS)
def test_equal_objects_are_equal_text_whatever_their_order(value: dict[str, Any]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@given(rows=st.lists(OBJECTS, max_size=5))
def test_json_lines_round_trip(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    file.write_bytes(write_json_lines(rows))
    assert list(read_json_lines(file)) == list(enumerate(rows, start=1))


def test_canonical_json_is_compact_sorted_and_not_escaped() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "č\u2028"}) == '{"a":"č\u2028","b":[1,2.5]}'


def test_readable_json_keeps_the_order_and_ends_in_a_newline() -> None:
    assert readable_json({"b": "č", "a": 1}) == '{\n  "b": "č",\n  "a": 1\n}\n'


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_writer_takes_a_number_that_is_not_finite(number: float) -> None:
    for write in (canonical_json, readable_json, rounded):
        with pytest.raises(ValueError, match=r"Out of range|must be finite"):
            write(number)


def test_rounded_keeps_significant_digits() -> None:
    assert rounded(1234567.89) == 1234570.0
    assert rounded(0.000123456789) == 0.000123457
    assert rounded(2 / 3, digits=2) == 0.67


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_with_file_and_line(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"id":"good"}\n\n' + line + b"\n")
    rows = read_json_lines(file)
    assert next(rows) == (1, {"id": "good"})
    with pytest.raises(InputError) as caught:
        next(rows)
    assert str(caught.value).startswith(f"{file}:3: ")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(file))


def test_lines_end_only_at_newlines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes('{"a":"\u2028\x85"}\r\n \t\n{"a":"no newline at the end"}'.encode())
    assert list(read_json_lines(file)) == [(1, {"a": "\u2028\x85"}), (3, {"a": "no newline at the end"})]


def test_a_line_may_be_as_long_as_the_limit_and_no_longer(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a":12}\n{"a":123}\n')
    rows = read_json_lines(file, max_line_bytes=9)
    assert next(rows) == (1, {"a": 12})
    with pytest.raises(InputError, match=r"rows\.jsonl:2: the line is longer than 9 bytes"):
        next(rows)


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * 8_000_000)
    tracemalloc.start()
    with pytest.raises(InputError, match="longer than 1000 bytes"):
        next(read_json_lines(file, max_line_bytes=1000))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1_000_000


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            list(read_json_lines(path))
        with pytest.raises(InputError, match="cannot be read"):
            read_json_object(path)


def test_a_json_file_is_bounded(tmp_path: Path) -> None:
    file = tmp_path / "small.json"
    file.write_text(json.dumps({"a": 1}))
    assert read_json_object(file) == {"a": 1}
    with pytest.raises(InputError, match="larger than 7 bytes"):
        read_json_object(file, max_bytes=7)
