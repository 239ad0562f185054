from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.errors import InputError
from karma_electric.training_db.history import Ledger, states
from karma_electric.training_db.import_rows import ImportRow, read_import_lines
from karma_electric.training_db.importing import Defaults, ImportCounts
from karma_electric.training_db.schema import ROLES, STATUSES
from karma_electric.training_db.store import open_to_read, open_to_write
from tests.training_db.rows import ADDED_AT, NOW, accepted, import_file, import_rows, row, stored, whole


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "training.db"


def test_every_column_is_stored(database: Path) -> None:
    columns: dict[str, Any] = {
        "status": "rejected", "hermes_score": 0, "hermes_evaluation": "thin", "rejection_reason": "too short",
        "template_flag": "greeting", "scored_at": "2026-01-01", "notes": "  ", "reasoning": "r", "tier": "gold",
        "role": "reward-evaluator",
    }  # fmt: skip
    assert import_rows(database, [row("a", **columns)]) == ImportCounts(new=1, known=0)
    (found,) = stored(database)
    assert json.loads(found.pop("conversations")) == row("a")["conversations"]
    del found["content_sha256"]
    assert found == {"id": "a", "source": "test", "category": "greeting", "added_at": ADDED_AT, **columns}


def test_columns_that_a_row_lacks_have_their_defaults(database: Path) -> None:
    import_rows(database, [row("a")])
    (found,) = stored(database)
    assert (found["status"], found["role"], found["hermes_score"], found["tier"]) == (
        "pending", "conversational", None, None
    )  # fmt: skip


def test_known_rows_are_counted_and_unchanged(database: Path) -> None:
    import_rows(database, [accepted("a"), accepted("b", notes="first")])
    before = stored(database)
    assert import_rows(database, [row("a"), row("c"), row("c")]) == ImportCounts(new=1, known=2)
    assert [found for found in stored(database) if found["id"] != "c"] == before


OTHER_CONTENT = {
    "conversations": row("b", "Another answer."),
    "category": row("b", category="other"),
    "hermes_score": row("b", hermes_score=3),
    "notes": row("b", notes="more"),
}


@pytest.mark.parametrize(("column", "other"), OTHER_CONTENT.items(), ids=OTHER_CONTENT.keys())
def test_the_same_id_with_other_content_is_refused_and_nothing_written(
    database: Path, column: str, other: dict[str, Any]
) -> None:
    import_rows(database, [row("b")])
    before = stored(database)
    lines: list[str] = []
    with pytest.raises(InputError, match=r"import\.jsonl: other content is there for 1 row; nothing was written; ch"):
        import_rows(database, [row("a"), other, row("c")], report=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(
        f"{database.with_name('import.jsonl')}:2: 'b' is there with other content: {column} there "
    )
    assert stored(database) == before


def test_a_conflict_shows_both_texts_from_where_they_part(database: Path) -> None:
    import_rows(database, [row("a", "x" * 500 + " and then the first end")])
    lines: list[str] = []
    with pytest.raises(InputError):
        import_rows(database, [row("a", "x" * 500 + " and then another end")], report=lines.append)
    assert "conversations there ' and then the first end\"" in lines[0]
    assert "here ' and then another end\"" in lines[0]


def test_keep_leaves_what_is_there(database: Path) -> None:
    import_rows(database, [row("a")])
    before = stored(database), stored(database, "history")
    assert import_rows(database, [row("a", "Other.")], on_conflict="keep") == ImportCounts(new=0, known=0, kept=1)
    assert (stored(database), stored(database, "history")) == before


def test_replace_changes_the_columns_that_the_file_gives_and_history_leads_back(database: Path) -> None:
    import_rows(database, [accepted("a", notes="mine"), row("b")])
    first = stored(database)[0]
    counts = import_rows(database, [row("c"), row("c", "Newer."), row("a", "Glacier.")], on_conflict="replace")
    assert counts == ImportCounts(new=1, known=0, replaced=2)
    found = stored(whole(database))[0]
    assert (found["status"], found["notes"]) == ("accepted", "mine")
    assert "Glacier." in found["conversations"]
    with open_to_read(database) as connection:
        query = "SELECT id FROM examples_fts WHERE examples_fts MATCH ? ORDER BY id"
        assert [match["id"] for match in connection.execute(query, ("glacier OR newer",))] == ["a", "c"]
        assert connection.execute(query, ("day",)).fetchall()[0]["id"] == "b"
        assert [state for _, state in states(connection, "examples", "a")][-1] == first


def test_rename_adds_under_a_name_of_the_content_and_knows_it_the_next_time(database: Path) -> None:
    import_rows(database, [row("a")])
    lines: list[str] = []
    other = [row("a", "Other."), row("a", notes="only the notes differ")]
    assert import_rows(database, other, on_conflict="rename", report=lines.append) == ImportCounts(
        new=0, known=0, renamed=2
    )
    found = stored(whole(database))
    assert [one["id"][:2] for one in found] == ["a", "a-", "a-"]
    assert found[1]["id"] != found[2]["id"]
    assert any(f"added as '{found[1]['id']}'" in line for line in lines)
    assert import_rows(database, other, on_conflict="rename") == ImportCounts(new=0, known=2)


def test_a_replaced_row_of_the_same_file_is_found_by_its_last_words(database: Path) -> None:
    import_rows(database, [row("a", "Volcano."), row("a", "Glacier.")], on_conflict="replace")
    with open_to_read(whole(database)) as connection:
        query = "SELECT count(*) FROM examples_fts WHERE examples_fts MATCH ?"
        assert [connection.execute(query, (word,)).fetchone()[0] for word in ("volcano", "glacier")] == [0, 1]


def test_two_rows_of_one_file_that_differ_are_refused(database: Path) -> None:
    with pytest.raises(InputError, match=r"import\.jsonl: other content is there for 1 row"):
        import_rows(database, [row("a"), row("a", "Another answer.")])
    assert stored(database) == []


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": (row("a", added_at="now"), "unknown key 'added_at'; expected id, conversations, status"),
    "an id that is null": (row("a", id=None), "id is missing"),
    "a blank id": (row(" "), "id is empty text"),
    "a NUL in the id": (row("\0a"), "id has a NUL character"),
    "a lone surrogate in the id": (row("\ud800"), "id has a lone surrogate"),
    "a category that is a number": (row("a", category=3), "category is a value of type int"),
    "no source": (row("a", source=None), "source is missing"),
    "an unknown status": (row("a", status="done"), "status is 'done', expected one of accepted, rejected"),
    "no status": (row("a", status=None), "status is None, expected one of accepted, rejected"),
    "an unknown role": (row("a", role="judge"), "role is 'judge', expected one of conversational"),
    "a score above 40": (row("a", hermes_score=41), "hermes_score is 41, expected a whole number from 0 to 40"),
    "a score below 0": (row("a", hermes_score=-1), "hermes_score is -1"),
    "a score that is text": (row("a", hermes_score="35"), "hermes_score is '35'"),
    "a score that is a fraction": (row("a", hermes_score=35.0), "hermes_score is 35.0"),
    "a score that is true": (row("a", hermes_score=True), "hermes_score is True"),
    "a score of a thousand digits": (row("a", hermes_score=10**1000), "hermes_score is 1000"),
    "notes that are an object": (row("a", notes={"a": 1}), "notes is an object with the keys a"),
    "notes that are a number": (row("a", notes=5), "notes is a value of type int"),
    "a lone surrogate in the notes": (row("a", notes="\udc00"), "notes has a lone surrogate"),
    "a bad conversation": (row("a", conversations=[]), "conversations is an empty list"),
    "the assistant first": (row("a", conversations=row("a")["conversations"][1:]), "turn 1 is of role 'assistant'"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_with_its_line_and_nothing_is_written(
    database: Path, bad: dict[str, Any], message: str
) -> None:
    import_rows(database, [row("known")])
    before = database.read_bytes()
    file = database.with_name("import.jsonl")
    file.write_text(json.dumps(row("good")) + "\n\n" + json.dumps(bad) + "\n" + json.dumps(row("later")) + "\n")
    lines: list[str] = []
    with pytest.raises(InputError, match=r"import\.jsonl: 1 bad row; nothing was written"):
        import_file(database, file, strict=True, report=lines.append)
    assert len(lines) == 1
    assert lines[0].startswith(f"{file}:3: {message}")
    assert database.read_bytes() == before
    assert import_file(database, file) == ImportCounts(new=2, known=0, bad=1)
    assert [found["id"] for found in stored(whole(database))] == ["good", "known", "later"]


BAD_LINES: dict[str, tuple[bytes, str]] = {
    "not JSON": (b"{\n", "not JSON ("),
    "a list": (b"[]\n", "found a list, expected a JSON object"),
    "a NUL byte": (b'{"id": "a\0"}\n', "a NUL byte at byte 10 of the line; remove it"),
    "an escaped NUL": (b'{"conversations":[{"role":"user","content":"ab\\u0000"}]}\n',
        "message 1: content has a NUL character at position 2"),
    "a lone surrogate": (b'{"conversations":[{"role":"user","content":"abc\\ud800"}]}\n',
        "message 1: content has a lone surrogate at position 3"),
    "a surrogate in UTF-8": (b'{"id": "\xed\xa0\x80"}\n', "not UTF-8 at byte 8"),
    "a key that stands twice": (b'{"id": "a", "id": "b"}\n', "not JSON (the key 'id' stands twice)"),
    "deep nesting": (b'{"id":' + b"[" * 100_000 + b"\n", "nested too deeply"),
    "the last line cut off": (b'{"id": "a", "conv', "not JSON (Unterminated string"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_named_with_its_line_and_the_others_are_imported(
    database: Path, line: bytes, message: str
) -> None:
    file = database.with_name("rows.jsonl")
    file.write_bytes(json.dumps(row("good")).encode() + b"\n\n" + line)
    lines: list[str] = []
    assert import_file(database, file, report=lines.append) == ImportCounts(new=1, known=0, bad=1)
    assert lines[0].startswith(f"{file}:3: {message}")


def test_a_line_that_is_too_long_is_passed_over_to_its_end(tmp_path: Path) -> None:
    lines = [
        json.dumps(row("a")),
        json.dumps(row("b", "x" * 5000)),
        json.dumps(row("c")),
        json.dumps(row("d", "y" * 5000)),
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    found = list(read_import_lines(tmp_path / "rows.jsonl", max_line_bytes=1000))
    assert [item.values["id"] if isinstance(item, ImportRow) else item.reason for item in found] == [
        "a",
        f"{tmp_path / 'rows.jsonl'}:2: the line is longer than 1000 bytes; split the row",
        "c",
        f"{tmp_path / 'rows.jsonl'}:4: the line is longer than 1000 bytes; split the row",
    ]


def test_a_file_with_nothing_but_bad_rows_makes_no_database(database: Path) -> None:
    file = database.with_name("rows.jsonl")
    file.write_text("x\ny\n")
    with pytest.raises(InputError, match=r"rows\.jsonl: 2 bad rows and no good one; nothing was written"):
        import_file(database, file)
    assert not database.exists()


def without(row_: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row_.items() if name not in names}


def test_rows_without_an_id_are_one_row_each_and_known_the_next_time(database: Path) -> None:
    rows = [without(row(name), "id") for name in "abc"]
    assert import_rows(database, [*rows, rows[0]]) == ImportCounts(new=3, known=1)
    assert import_rows(database, rows) == ImportCounts(new=0, known=3)
    assert all(found["id"].startswith("content-") for found in stored(database))


def test_rows_with_nothing_but_conversations_have_the_defaults(database: Path) -> None:
    bare = without(row("a"), "id", "source", "category")
    rated = without(row("r", category="reward-evaluation"), "source")
    import_rows(database, [bare, rated], defaults=Defaults(source="web", category="odds"))
    found = {one["category"]: one for one in stored(database)}
    assert (found["odds"]["source"], found["odds"]["role"]) == ("web", "conversational")
    assert (found["reward-evaluation"]["source"], found["reward-evaluation"]["role"]) == ("web", "reward-evaluator")


def test_the_sharegpt_form_is_the_same_row(database: Path) -> None:
    turns = [("system", "Be brief."), ("human", "Hello from a"), ("gpt", "Good day.")]
    sharegpt = row("a", conversations=[{"from": role, "value": text} for role, text in turns])
    mixed = row("a", conversations=[{"role": role, "content": text} for role, text in turns])
    assert import_rows(database, [sharegpt, mixed]) == ImportCounts(new=1, known=1)
    assert [turn["role"] for turn in json.loads(stored(database)[0]["conversations"])] == [
        "system",
        "user",
        "assistant",
    ]
    lines: list[str] = []
    for bad in (
        [{"from": "tool", "value": "x"}],
        [{"from": "human", "content": "x"}],
        [{"from": 1, "value": "x"}],
        "x",
    ):
        with pytest.raises(InputError):
            import_rows(database, [row("b", conversations=bad)], report=lines.append)
    assert [line.split(": ", 1)[1] for line in lines] == [
        "message 1: role is 'tool', expected one of system, user, assistant",
        "message 1: found an object with the keys content, from, expected an object with exactly role and content",
        "message 1: role is 1, expected one of system, user, assistant",
        "conversations is text, expected a list of messages with role and content",
    ]


def test_a_pipe_can_be_imported(database: Path) -> None:
    pipe = database.with_name("pipe")
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat > {pipe}"], stdin=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        writer.stdin.write(json.dumps(row("a")) + "\n")
        writer.stdin.close()
        assert import_file(database, pipe) == ImportCounts(new=1, known=0)


def test_the_database_cannot_be_imported_into_itself(database: Path) -> None:
    import_rows(database, [row("a")])
    with pytest.raises(InputError, match=r"training\.db: is the database itself; nothing was written"):
        import_file(database, database)


def test_an_import_merges_the_index_and_leaves_its_settings_as_they_were(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karma_electric.training_db.full_text._MANY_ROWS", 2)
    import_rows(database, [row(str(number)) for number in range(5)])
    with open_to_write(database) as connection:
        options = dict(connection.execute("SELECT k, v FROM examples_fts_config").fetchall())
        assert (options["automerge"], options["crisismerge"], options["hashsize"]) == (4, 16, 1 << 20)
        assert connection.execute("SELECT count(DISTINCT segid) FROM examples_fts_idx").fetchone()[0] == 1
        Ledger(connection, at=NOW, command="test").add("examples", {**stored(database)[0], "id": "by hand"})
        found = connection.execute("SELECT count(*) FROM examples_fts WHERE examples_fts MATCH 'hand'").fetchone()
        assert found[0] == 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip)
ROWS = st.fixed_dictionaries(
    {
        "source": TEXTS,
        "category": TEXTS,
        "conversations": st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3).map(
            lambda pairs: [
                {"role": role, "content": text}
                for pair in pairs
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
        ),
    },
    optional={
        "status": st.sampled_from(STATUSES), "role": st.sampled_from(ROLES), "hermes_score": st.integers(0, 40),
        **{name: st.one_of(st.none(), TEXTS) for name in ("notes", "reasoning", "tier", "template_flag")},
    },
)  # fmt: skip


@settings(max_examples=25)
@given(st.dictionaries(TEXTS, ROWS, min_size=1, max_size=4), st.booleans())
def test_what_is_imported_is_what_is_stored(rows: dict[str, dict[str, Any]], ascii_only: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        database, file = Path(name) / "training.db", Path(name) / "rows.jsonl"
        lines = [json.dumps({"id": id_, **values}, ensure_ascii=ascii_only) for id_, values in rows.items()]
        file.write_text("\n".join(lines), "utf-8")
        assert import_file(database, file).new == len(rows)
        for found in stored(whole(database)):
            given_ = rows[found["id"]]
            assert json.loads(found["conversations"]) == given_["conversations"]
            assert all(found[key] == value for key, value in given_.items() if key != "conversations")
        assert import_file(database, file, strict=True) == ImportCounts(new=0, known=len(rows))


def test_a_turn_of_a_megabyte(database: Path) -> None:
    text = "Žluťoučký kůň 🐎 úpěl. " * 42_000
    import_rows(database, [row("a", text)])
    assert import_rows(database, [row("a", text)]) == ImportCounts(new=0, known=1)
    with open_to_read(whole(database)) as connection:
        found = connection.execute("SELECT id FROM examples_fts WHERE examples_fts MATCH 'zlutoucky'").fetchone()
        assert found["id"] == "a"
    assert json.loads(stored(database)[0]["conversations"])[1]["content"] == text


@pytest.mark.parametrize("text", [None, "not JSON\n", '{"id": "a"}\n'])
def test_a_file_that_cannot_be_imported_makes_no_database(database: Path, text: str | None) -> None:
    file = database.with_name("rows.jsonl")
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"rows\.jsonl:"):
        import_file(database, file)
    assert not database.exists()


def test_a_full_text_search_finds_an_imported_row(database: Path) -> None:
    import_rows(database, [row("a", "Water boils at a hundred degrees."), row("b", "Náhoda.")])
    with open_to_read(database) as connection:
        query = "SELECT id FROM examples_fts WHERE examples_fts MATCH ?"
        assert [found["id"] for found in connection.execute(query, ("boils",))] == ["a"]
        assert [found["id"] for found in connection.execute(query, ("nahoda",))] == ["b"]
