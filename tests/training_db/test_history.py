from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.training_db import curation
from karma_electric.training_db.history import Ledger, check_database, entries, state_at, states
from karma_electric.training_db.store import find_example, open_to_read, open_to_write
from karma_electric.training_db.text_patch import apply_hunks, reverse_hunks, shared_start
from tests.training_db.rows import NOW, accepted, import_rows, row, stored, whole, write_database

LATER = NOW + datetime.timedelta(hours=1)
TEXTS = st.text(st.sampled_from('ab \\n"{č🐎'), max_size=40) | st.text()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    import_rows(tmp_path / "training.db", [accepted("a"), row("b", rejection_reason="thin", status="rejected")])
    return tmp_path / "training.db"


@given(TEXTS, TEXTS)
@example("", "a")
@example("aa", "aaa")
@example("same", "same")
def test_a_patch_leads_back(earlier: str, later: str) -> None:
    hunks = reverse_hunks(earlier, later)
    assert apply_hunks(later, json.loads(canonical_json(hunks))) == earlier
    assert (hunks == []) == (earlier == later)


@given(TEXTS, TEXTS, TEXTS)
def test_the_shared_start(start: str, first: str, second: str) -> None:
    length = shared_start(start + first, start + second)
    assert (start + first)[:length] == (start + second)[:length]
    assert length >= len(start)
    assert (start + first)[length : length + 1] != (start + second)[length : length + 1] or length == len(start + first)


@pytest.mark.parametrize("separator", [" ", "\\n", "-"], ids=["words", "lines", "neither"])
def test_a_patch_of_a_megabyte_holds_what_differs(separator: str) -> None:
    words = [f"word{number}" for number in range(100_000 if separator == "-" else 4000)]
    if separator == "\\n":
        words = [" ".join([word] * 20) for word in words]
    earlier = separator.join(words)
    words[10], words[-10] = "early", "late"
    later = separator.join(words)
    hunks = reverse_hunks(earlier, later)
    assert apply_hunks(later, hunks) == earlier
    kept = sum(len(text) for _, _, text in hunks)
    assert kept < 600 if separator != "-" else kept < len(earlier)


BAD_HUNKS = [[[5, 1, "x"]], [[0, 5, "x"]], [[2, 1, "x"], [1, 1, "y"]], [[0, -1, "x"]], [["0", 1, "x"]], [[0, 1]]]


@pytest.mark.parametrize("hunks", BAD_HUNKS, ids=str)
def test_a_patch_that_does_not_fit_is_refused(hunks: Any) -> None:
    with pytest.raises(IntegrityError, match="a patch in history does not fit its text of 3 characters"):
        apply_hunks("abc", hunks)


def curate(database: Path) -> list[dict[str, Any]]:
    """Every command once; the rows of `a` after each, the earliest first."""
    rows = [stored(database)[0]]
    steps: tuple[Callable[[sqlite3.Connection], bool], ...] = (
        lambda connection: curation.reject(connection, "a", "too long", at=LATER),
        lambda connection: curation.accept(connection, "a", at=LATER),
        lambda connection: curation.edit(
            connection, "a", json.dumps(row("a", "Edited. " * 60)["conversations"]), at=LATER
        ),
        lambda connection: curation.edit(
            connection, "a", json.dumps(row("a", "Edited! " * 60)["conversations"]), at=LATER
        ),
        lambda connection: curation.archive(connection, "a", at=LATER),
    )
    for step in steps:
        with open_to_write(database) as connection:
            assert step(connection) is True
        with open_to_write(database) as connection:
            assert step(connection) is False, "the second time changes nothing"
        rows.append(stored(database)[0])
    return rows


def test_history_leads_back_through_every_command(database: Path) -> None:
    rows = curate(database)
    assert [found["status"] for found in rows] == [
        "accepted", "rejected", "accepted", "accepted", "accepted", "archived"
    ]  # fmt: skip
    assert rows[2]["rejection_reason"] is None
    with open_to_read(whole(database)) as connection:
        found = list(states(connection, "examples", "a"))
        assert [state for _, state in found] == list(reversed(rows))
        assert [entry.command for entry, _ in found] == ["archive", "edit", "edit", "accept", "reject", "import"]
        assert [entry.at for entry, _ in found] == [LATER.isoformat()] * 5 + [NOW.isoformat()]
        assert found[-1][0].detail == "import.jsonl:1"
        assert found[-2][0].changed == ["rejection_reason", "status"]
        assert state_at(connection, "a", found[-2][0].number)["rejection_reason"] == "too long"
        with pytest.raises(InputError, match="history 2 is not about 'a'; `karma db history a` lists its numbers"):
            state_at(connection, "a", 2)
        assert [entry.number for entry in entries(connection, limit=3)] == [7, 6, 5]


def test_history_keeps_no_second_copy(database: Path) -> None:
    text = "A long answer, with a word in it. " * 300
    import_rows(database, [row("long", text)])
    with open_to_write(database) as connection:
        turns = json.dumps(row("long", text.replace("word", "sign", 1))["conversations"])
        curation.edit(connection, "long", turns, at=LATER)
        curation.accept(connection, "long", at=LATER)
    assert sum(len(found["reverse_patch"] or "") for found in stored(database, "history")) < 200


def test_a_row_or_history_that_another_program_changed_is_found(database: Path) -> None:
    curate(database)
    good = database.read_bytes()
    spoilt = (
        ("UPDATE examples SET status = 'accepted' WHERE id = 'a'", "examples 'a' is not what history says"),
        ("UPDATE examples SET content_sha256 = replace(content_sha256, 'a', 'b')", "examples 'a' is not what history"),
        ("DROP TRIGGER history_is_not_deleted; DELETE FROM history WHERE number = 5", "history 6 does not follow"),
        ("DROP TRIGGER history_is_not_deleted; DELETE FROM history WHERE id = 'b'", "examples 'b' is not what history"),
        (
            "DROP TRIGGER examples_are_not_deleted; DELETE FROM examples WHERE id = 'b'; "
            "INSERT INTO examples_fts (examples_fts) VALUES ('rebuild')",
            "examples 'b' is in history only",
        ),
        ("DROP TRIGGER examples_after_update; UPDATE examples SET category = 'x'", "full-text index does not fit"),
    )
    for script, message in spoilt:
        database.write_bytes(good)
        write_database(database, script)
        with pytest.raises(IntegrityError, match=message), open_to_write(database) as connection:
            check_database(connection, "it")
    database.write_bytes(good)
    write_database(
        database, "DROP TRIGGER history_is_not_changed; UPDATE history SET reverse_patch = '{}' WHERE number = 3"
    )
    with (
        open_to_read(database) as connection,
        pytest.raises(IntegrityError, match="history 3: its patch does not lead"),
    ):
        list(states(connection, "examples", "a"))


def test_a_prompt_has_a_history_too(database: Path) -> None:
    for content, changed in (("Be calm.", True), ("Be calm.", False), ("Be calm and brief.", True)):
        with open_to_write(database) as connection:
            assert curation.set_system_prompt(connection, "persona", content, None, at=LATER) is changed
    with open_to_read(whole(database)) as connection:
        found = [state["content"] for _, state in states(connection, "system_prompts", "persona")]
    assert found == ["Be calm and brief.", "Be calm."]


def test_two_writers_on_one_row_lose_nothing(database: Path) -> None:
    """An edit of what somebody else has changed meanwhile is refused; the text of a reader is not the last word."""
    with open_to_read(database) as connection:
        text, row_sha256 = curation.text_to_edit(connection, "a")
    with open_to_write(database) as connection:
        curation.reject(connection, "a", "thin", at=LATER)
    edited = text.replace("Good", "Bad")
    with (
        pytest.raises(InputError, match="'a' was changed while it was edited; edit it again"),
        open_to_write(database) as connection,
    ):
        curation.edit(connection, "a", edited, at=LATER, expected_sha256=row_sha256)
    with open_to_write(database) as connection:
        assert curation.edit(connection, "a", edited, at=LATER)
    assert stored(whole(database))[0]["status"] == "rejected"


EDITS = {
    "not JSON": ("[{", "not JSON ("),
    "nothing": ("", "not JSON (Expecting value"),
    "no message": ("[]", "conversations is an empty list"),
    "the user last": (json.dumps(row("a")["conversations"][:1]), "the last turn must be the assistant's"),
    "a key that stands twice": (
        '[{"role":"user","role":"user","content":"x"}]',
        "not JSON (the key 'role' stands twice)",
    ),
    "a bad line": ('{"role":"user","content":"x"}\n{"role":', "line 2: not JSON"),
    "a NUL": ('[{"role":"user","content":"a\\u0000"}]', "message 1: content has a NUL character at position 1"),
    "a lone surrogate": ("[\ud800", "a lone surrogate at position 1"),
}


@pytest.mark.parametrize(("text", "message"), EDITS.values(), ids=EDITS.keys())
def test_an_edit_that_is_no_conversation_is_refused(database: Path, text: str, message: str) -> None:
    before = database.read_bytes()
    with pytest.raises(InputError) as caught, open_to_write(database) as connection:
        curation.edit(connection, "a", text, at=LATER)
    assert str(caught.value).startswith(f"'a': {message}")
    assert database.read_bytes() == before


def test_an_edit_takes_a_list_or_a_message_a_line(database: Path) -> None:
    turns = row("a", "Edited.")["conversations"]
    lines = "\n\n".join(
        json.dumps({"from": {"user": "human"}.get(one["role"], "gpt"), "value": one["content"]}) for one in turns
    )
    with open_to_write(database) as connection:
        assert curation.edit(connection, "a", json.dumps(turns, indent=4), at=LATER)
        assert not curation.edit(connection, "a", lines, at=LATER)
    assert json.loads(stored(database)[0]["conversations"]) == turns


COMMANDS = {
    "accept": lambda connection, id_: curation.accept(connection, id_, at=LATER),
    "reject": lambda connection, id_: curation.reject(connection, id_, "why", at=LATER),
    "archive": lambda connection, id_: curation.archive(connection, id_, at=LATER),
    "edit": lambda connection, id_: curation.edit(connection, id_, "[]", at=LATER),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_an_unknown_id_is_an_error(database: Path, command: Any) -> None:
    before = database.read_bytes()
    with pytest.raises(InputError, match="there is no example 'nobody'"), open_to_write(database) as connection:
        command(connection, "nobody")
    assert database.read_bytes() == before


def test_accept_refuses_what_a_training_set_cannot_take(database: Path) -> None:
    with open_to_write(database) as connection:
        values = {**find_example(connection, "a"), "id": "odd", "status": "pending", "conversations": "[]"}
        Ledger(connection, at=NOW, command="test").add("examples", values)
    with (
        pytest.raises(InputError, match="'odd': conversations is an empty list"),
        open_to_write(database) as connection,
    ):
        curation.accept(connection, "odd", at=LATER)
    with pytest.raises(InputError, match="the reason is empty text"), open_to_write(database) as connection:
        curation.reject(connection, "a", " ", at=LATER)
