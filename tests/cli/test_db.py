from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.running import ROOT, karma, one_line_of
from tests.training_db.rows import accepted, row, write_rows


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
