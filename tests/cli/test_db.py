from __future__ import annotations

from pathlib import Path

from tests.cli.running import karma, one_line_of
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
