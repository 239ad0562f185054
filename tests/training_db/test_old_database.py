from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from karma_electric.errors import InputError
from karma_electric.training_db.importing import Defaults, ImportCounts
from tests.training_db.rows import ADDED_AT, accepted, import_file, import_rows, row, stored, whole, write_database

TWELVE = (
    "id TEXT PRIMARY KEY, status TEXT DEFAULT 'pending', source TEXT, category TEXT, conversations TEXT NOT NULL, "
    "hermes_score INTEGER, hermes_evaluation TEXT, rejection_reason TEXT, template_flag TEXT, added_at TEXT NOT NULL, "
    "scored_at TEXT, notes TEXT"
)
WIDTHS = {12: TWELVE, 13: TWELVE + ", reasoning TEXT", 15: TWELVE + ", reasoning TEXT, tier TEXT, role TEXT"}


def old_database(path: Path, rows: list[dict[str, Any]], width: int = 15, script: str = "") -> Path:
    """A database of the old system, with a full-text table as it had one."""
    write_database(
        path,
        f"CREATE TABLE examples ({WIDTHS[width]});"
        "CREATE VIRTUAL TABLE examples_fts USING fts5 (id, conversations, category, content='examples');" + script,
    )
    with closing(sqlite3.connect(path)) as connection, connection:
        for values in rows:
            marks = ", ".join("?" * len(values))
            connection.execute(f"INSERT INTO examples ({', '.join(values)}) VALUES ({marks})", list(values.values()))
    return path


def old_row(id_: str, **changes: Any) -> dict[str, Any]:
    """Values of an old row; the conversation as the old system stored it."""
    text = json.dumps(row(id_)["conversations"], indent=1)
    return {
        "id": id_,
        "source": "web",
        "category": "greeting",
        "conversations": text,
        "added_at": "2025-01-02",
        **changes,
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("tables", [False, True], ids=["examples only", "with prompts and exports"])
def test_every_width_with_and_without_the_other_tables(tmp_path: Path, width: int, tables: bool) -> None:
    script = (
        "CREATE TABLE system_prompts (id TEXT, content TEXT, description TEXT);"
        "INSERT INTO system_prompts VALUES ('persona', 'Be calm.', NULL);"
        "CREATE TABLE exports (at TEXT, file TEXT, rows INTEGER);"
        "INSERT INTO exports VALUES ('2025', 'train-v6.jsonl', 3764);"
    )
    later = {13: {"reasoning": "r"}, 15: {"reasoning": "r", "tier": "gold", "role": "reward-evaluator"}}.get(width, {})
    file = old_database(
        tmp_path / "old.db",
        [old_row("a", status="accepted", hermes_score=40, scored_at="s", notes="n", **later), old_row("b")],
        width,
        script if tables else "",
    )
    before = file.read_bytes()
    database = tmp_path / "new.db"
    new = 3 if tables else 2
    assert import_file(database, file, strict=True) == ImportCounts(new=new, known=0)
    assert import_file(database, file, strict=True) == ImportCounts(new=0, known=new)
    first, second = stored(whole(database))
    assert json.loads(first["conversations"]) == row("a")["conversations"]
    expected = {"status": "accepted", "hermes_score": 40, "scored_at": "s", "notes": "n", "added_at": "2025-01-02"}
    assert expected | later == {name: first[name] for name in expected | later}
    assert (second["status"], second["hermes_score"], second["role"]) == ("pending", None, "conversational")
    prompts, exports = stored(database, "system_prompts"), stored(database, "exports")
    if tables:
        assert prompts == [{"id": "persona", "content": "Be calm.", "description": None}]
        assert [json.loads(found["record"]) for found in exports] == [
            {"at": "2025", "file": "train-v6.jsonl", "rows": 3764}
        ]
    else:
        assert prompts == exports == []
    assert {found["detail"] for found in stored(database, "history")} <= {"old.db: row 1", "old.db: row 2", "old.db"}
    assert file.read_bytes() == before


def test_bad_rows_are_listed_and_the_others_imported(tmp_path: Path) -> None:
    rows = [
        old_row("good", source=None, category="", status=None),
        old_row("spoilt", conversations="[{"),
        old_row("scored", hermes_score=41),
        old_row("blob", conversations=b"[]"),
        old_row("bytes", conversations="[]"),
        old_row("sharegpt", conversations='[{"from":"human","value":"x"},{"from":"gpt","value":"y"}]'),
    ]
    file = old_database(tmp_path / "old.db", rows)
    write_database(file, "UPDATE examples SET conversations = CAST(x'5b22ff225d' AS TEXT) WHERE id = 'bytes'")
    database, lines = tmp_path / "new.db", list[str]()
    counts = import_file(database, file, report=lines.append, defaults=Defaults(source="old", category="odd"))
    assert counts == ImportCounts(new=2, known=0, bad=4)
    assert [line.removeprefix(f"{file}: ").split(": ", 1)[0] for line in lines] == [
        "row 2, 'spoilt'", "row 3, 'scored'", "row 4, 'blob'", "row 5, 'bytes'"
    ]  # fmt: skip
    assert "conversations: not JSON" in lines[0]
    assert "not UTF-8 at position 2" in lines[3]
    good = stored(whole(database))[0]
    assert (good["source"], good["category"], good["status"]) == ("old", "odd", "pending")


def test_conflicts_follow_the_rule_for_examples_and_for_prompts(tmp_path: Path) -> None:
    script = (
        "CREATE TABLE system_prompts (id TEXT, content TEXT, description TEXT);"
        "INSERT INTO system_prompts VALUES ('persona', '{}', NULL); CREATE TABLE bookmarks (url TEXT);"
    )
    first = old_database(tmp_path / "1.db", [old_row("a")], script=script.format("Be calm."))
    second = old_database(tmp_path / "2.db", [old_row("a", notes="n")], script=script.format("Be brief."))
    database, lines = tmp_path / "new.db", list[str]()
    import_file(database, first)
    with pytest.raises(InputError, match=r"2\.db: other content is there for 2 rows; nothing was written"):
        import_file(database, second, report=lines.append)
    assert lines[0] == f"{second}: the table 'bookmarks' is not imported; the file keeps it"
    assert "content there 'Be calm.', here 'Be brief.'" in lines[2]
    assert import_file(database, second, on_conflict="replace").replaced == 2
    assert stored(whole(database), "system_prompts")[0]["content"] == "Be brief."
    assert stored(database, "history")[-1]["reverse_patch"] == '{"set":{"content":"Be calm."}}'


NOT_OURS = {
    "no examples": ("CREATE TABLE x (a)", "a database without the table examples"),
    "too few columns": ("CREATE TABLE examples (id TEXT, conversations TEXT)", "examples has no column added_at"),
    "an unknown column": (f"CREATE TABLE examples ({TWELVE}, mood TEXT)", "examples has a column 'mood', which would"),
    "an unknown column of prompts": (
        f"CREATE TABLE examples ({TWELVE}); CREATE TABLE system_prompts (id, content, description, mood)",
        "system_prompts has a column 'mood', which would be lost",
    ),
}


@pytest.mark.parametrize(("script", "message"), NOT_OURS.values(), ids=NOT_OURS.keys())
def test_a_database_of_something_else_is_refused(tmp_path: Path, script: str, message: str) -> None:
    file = write_database(tmp_path / "x.db", script)
    with pytest.raises(InputError) as caught:
        import_file(tmp_path / "new.db", file)
    assert str(caught.value).startswith(f"{file}: {message}")


def test_an_old_database_with_a_log_is_refused(tmp_path: Path) -> None:
    file = old_database(tmp_path / "old.db", [old_row("a")])
    file.with_name("old.db-wal").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match=r"old\.db-wal: holds changes that old\.db lacks"):
        import_file(tmp_path / "new.db", file)


def test_a_database_of_this_project_is_imported_with_its_columns(tmp_path: Path) -> None:
    import_rows(tmp_path / "other.db", [accepted("a", tier="gold", notes="n"), row("b")])
    import_rows(tmp_path / "new.db", [row("c")])
    assert import_file(tmp_path / "new.db", tmp_path / "other.db", strict=True) == ImportCounts(new=2, known=0)
    assert stored(tmp_path / "new.db")[:2] == stored(tmp_path / "other.db")
    assert {found["added_at"] for found in stored(whole(tmp_path / "new.db"))} == {ADDED_AT}
