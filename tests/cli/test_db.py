from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import ROOT, karma, one_line_of
from tests.training_db.rows import accepted, row, write_rows


def test_import_says_what_was_new_and_makes_the_database(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "batch.jsonl", [accepted("a"), row("b")])
    done = karma("db", "import", file, "--db", "new/training.db", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{file}: 2 new, 0 known\n")
    write_rows(file, [row("b"), row("c")])
    assert karma("db", "import", file, "--db", "new/training.db", folder=tmp_path).stderr == f"{file}: 1 new, 1 known\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["training.db"]


def test_import_refuses_in_one_line(tmp_path: Path) -> None:
    write_rows(tmp_path / "good.jsonl", [row("a")])
    write_rows(tmp_path / "other.jsonl", [row("b"), row("a", "Another answer.")])
    assert karma("db", "import", "good.jsonl", "--db", "t.db", folder=tmp_path).returncode == 0
    before = (tmp_path / "t.db").read_bytes()
    line = one_line_of(karma("db", "import", "other.jsonl", "--db", "t.db", folder=tmp_path), exit_code=1)
    assert line == "other.jsonl:2: 'a' is there with another conversations; nothing was written"
    line = one_line_of(karma("db", "import", "none.jsonl", "--db", "t.db", folder=tmp_path), exit_code=1)
    assert line.startswith("none.jsonl: cannot be read")
    line = one_line_of(karma("db", "import", "good.jsonl", "--db", "good.jsonl", folder=tmp_path), exit_code=1)
    assert line == "good.jsonl: file is not a database; nothing was written"
    assert (tmp_path / "t.db").read_bytes() == before


def test_stats_for_people_and_for_machines(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [accepted("a"), row("b"), accepted("č", category="otázky")])
    karma("db", "import", "rows.jsonl", "--db", "t.db", folder=tmp_path)
    done = karma("db", "stats", "--db", "t.db", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"greeting": {"accepted": 1, "pending": 1}, "otázky": {"accepted": 1}}
    people = karma("db", "stats", "--db", "t.db", folder=tmp_path).stdout.splitlines()
    assert [line.split() for line in people] == [
        ["greeting", "accepted", "1", "pending", "1"], ["otázky", "accepted", "1"]
    ]  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "t.db"}


def test_stats_of_the_shipped_database() -> None:
    counts = json.loads(karma("db", "stats", "--json", folder=ROOT).stdout)
    assert sum(by_status["accepted"] for by_status in counts.values()) >= 120


@pytest.mark.parametrize("arguments", [["stats"], ["stats", "--json"]])
def test_stats_of_a_missing_database_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    line = one_line_of(karma("db", *arguments, folder=tmp_path), exit_code=1)
    assert line == "data/training.db: missing; expected the training database (git restores it)"
    assert list(tmp_path.iterdir()) == []
