from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.running import KARMA, ROOT, karma, one_line_of
from tests.training_db.rows import accepted, import_rows, row, stored, whole, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a database of three rows."""
    import_rows(tmp_path / "t.db", [accepted("a-001"), row("a-002"), row("b-001")])
    (tmp_path / "import.jsonl").unlink()
    return tmp_path


def ok(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    done = karma("db", *words, folder=folder)
    assert done.returncode == 0, done.stderr
    return done


def refused(folder: Path, *words: str | Path, exit_code: int = 1) -> str:
    return one_line_of(karma("db", *words, folder=folder), exit_code)


def test_import_says_what_was_new_and_makes_the_database(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "batch.jsonl", [accepted("a"), row("b")])
    done = ok(tmp_path, "import", file, "--db", "new/training.db")
    assert (done.stdout, done.stderr) == ("", f"{file}: 2 new, 0 known\n")
    write_rows(file, [row("b"), row("c")])
    assert ok(tmp_path, "import", file, "--db", "new/training.db").stderr == f"{file}: 1 new, 1 known\n"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["training.db"]


def test_import_lists_bad_lines_and_ends_with_1(folder: Path) -> None:
    good = json.dumps({"conversations": row("x")["conversations"]})
    (folder / "batch.jsonl").write_text(f"{good}\nnot JSON\n{{}}\n")
    before = (folder / "t.db").read_bytes()
    done = karma("db", "import", "batch.jsonl", "--strict", "--db", "t.db", folder=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("batch.jsonl:2: not JSON (")
    assert done.stderr.splitlines()[1].startswith("batch.jsonl:3: conversations is missing")
    assert done.stderr.splitlines()[2:] == ["error: batch.jsonl: 2 bad rows; nothing was written"]
    assert (folder / "t.db").read_bytes() == before
    done = karma("db", "import", "batch.jsonl", "--source", "web", "--category", "odd", "--db", "t.db", folder=folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[2:] == [
        "batch.jsonl: 1 new, 0 known",
        "error: batch.jsonl: left out 2 bad rows; correct and import the file again",
    ]
    (added,) = (found for found in stored(folder / "t.db") if found["id"].startswith("content-"))
    assert (added["source"], added["category"]) == ("web", "odd")


def test_import_reports_conflicts_and_does_what_is_chosen(folder: Path) -> None:
    write_rows(folder / "other.jsonl", [row("new"), row("a-001", "Another answer.")])
    before = (folder / "t.db").read_bytes()
    done = karma("db", "import", "other.jsonl", "--db", "t.db", folder=folder)
    first, last = done.stderr.splitlines()
    assert (done.returncode, first.split(": ", 2)[:2]) == (1, ["other.jsonl:2", "'a-001' is there with other content"])
    assert "Good day." in first
    assert "Another answer." in first
    assert last == (
        "error: other.jsonl: other content is there for 1 row; nothing was written; "
        "choose with --on-conflict keep, replace or rename"
    )
    assert (folder / "t.db").read_bytes() == before
    done = ok(folder, "import", "other.jsonl", "--on-conflict", "rename", "--db", "t.db")
    assert done.stderr.endswith("other.jsonl: 1 new, 0 known, 1 renamed\n")
    assert karma("db", "import", "other.jsonl", "--on-conflict", "guess", "--db", "t.db", folder=folder).returncode == 2


def test_import_refuses_in_one_line(folder: Path) -> None:
    before = (folder / "t.db").read_bytes()
    assert refused(folder, "import", "none.jsonl", "--db", "t.db").startswith("none.jsonl: cannot be read")
    write_rows(folder / "good.jsonl", [row("a")])
    line = refused(folder, "import", "good.jsonl", "--db", "good.jsonl")
    assert line == "good.jsonl: is the database itself; nothing was written"
    (folder / "text").write_text("not a database\n" * 100)
    assert (
        refused(folder, "import", "good.jsonl", "--db", "text") == "text: file is not a database; nothing was written"
    )
    assert refused(folder, "import", "good.jsonl", "--source", " ", "--db", "t.db").startswith("--source is empty text")
    assert (folder / "t.db").read_bytes() == before


def test_accept_reject_and_archive(folder: Path) -> None:
    done = ok(folder, "accept", "a-001", "a-002", "--db", "t.db")
    assert (done.stdout, done.stderr) == ("", "a-001: was accepted already\na-002: accepted\n")
    assert ok(folder, "reject", "a-002", "too long", "--db", "t.db").stderr == "a-002: rejected\n"
    assert ok(folder, "archive", "b-001", "--db", "t.db").stderr == "b-001: archived\n"
    assert [(found["status"], found["rejection_reason"]) for found in stored(whole(folder / "t.db"))] == [
        ("accepted", None), ("rejected", "too long"), ("archived", None)
    ]  # fmt: skip
    assert [path.name for path in folder.iterdir()] == ["t.db"], "the log was emptied"


BAD_CURATION = {
    "accept": (["accept", "a-002", "a-003"], 1, "there is no example 'a-003'; the nearest are a-001, a-002"),
    "reject": (["reject", "a-01", "why"], 1, "there is no example 'a-01'; the nearest are a-001"),
    "archive": (["archive", "a-002", "zzz"], 1, "there is no example 'zzz'"),
    "edit": (["edit", "a-01", "--from", "x"], 1, "there is no example 'a-01'; the nearest are a-001"),
    "history": (["history", "a-01"], 1, "there is no example 'a-01'; the nearest are a-001"),
    "an empty reason": (["reject", "a-002", ""], 1, "the reason is empty text"),
    "a missing prompt": (["prompt", "persona", "none.txt"], 1, "none.txt: cannot be read"),
    "a missing dump": (["restore", "none.jsonl", "--replace"], 1, "none.jsonl: cannot be read"),
    "--at without an id": (["history", "--at", "1"], 1, "--at shows one example as it was; name its ID, too"),
}


@pytest.mark.parametrize(("words", "exit_code", "message"), BAD_CURATION.values(), ids=BAD_CURATION.keys())
def test_bad_input_changes_nothing(folder: Path, words: list[str], exit_code: int, message: str) -> None:
    before = (folder / "t.db").read_bytes()
    assert refused(folder, *words, "--db", "t.db", exit_code=exit_code).startswith(message)
    assert (folder / "t.db").read_bytes() == before


MISSING_DATABASE = [
    ["accept", "a"], ["reject", "a", "why"], ["archive", "a"], ["edit", "a"], ["upgrade"], ["dump"], ["history"]
]  # fmt: skip


@pytest.mark.parametrize("words", MISSING_DATABASE, ids=" ".join)
def test_a_missing_database_is_one_line_and_stays_missing(tmp_path: Path, words: list[str]) -> None:
    assert refused(tmp_path, *words).startswith("data/training.db: missing; expected")
    assert list(tmp_path.iterdir()) == []


def in_editor(folder: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`karma db edit` with an editor that runs a line of Python on `text`."""
    code = (
        "import pathlib, sys; path = pathlib.Path(sys.argv[1]); text = path.read_text('utf-8'); "
        f"{script}; path.write_text(text, 'utf-8')"
    )
    (folder / "editor.py").write_text(code)
    environment = {**os.environ, "EDITOR": f"{sys.executable} {folder / 'editor.py'}", "TMPDIR": str(folder)}
    environment.pop("VISUAL", None)
    command = [str(KARMA), "db", "edit", *words, "--db", "t.db"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_edit_opens_the_editor_and_stores_what_it_leaves(folder: Path) -> None:
    done = in_editor(folder, "text = text.replace('Good day.', 'Dobrý den.')", "a-001")
    assert (done.returncode, done.stderr) == (0, "a-001: edited\n")
    assert json.loads(stored(whole(folder / "t.db"))[0]["conversations"])[1]["content"] == "Dobrý den."
    assert in_editor(folder, "pass", "a-001").stderr == "a-001: unchanged\n"
    assert {path.name for path in folder.iterdir()} == {"t.db", "editor.py"}


def test_a_text_that_cannot_be_stored_is_kept_and_can_be_stored_later(folder: Path) -> None:
    before = (folder / "t.db").read_bytes()
    line = one_line_of(in_editor(folder, "text = text.replace('\"user\"', '\"usr\"')", "a-001"), 1)
    (kept,) = folder.glob("karma-edit-*.json")
    assert line.startswith(
        "'a-001': message 1: role is 'usr', expected one of system, user, assistant; your text is in "
    )
    assert line.endswith(f"{kept}: `karma db edit a-001 --from {kept}`")
    assert (folder / "t.db").read_bytes() == before
    kept.write_text(kept.read_text().replace("usr", "user").replace("Good", "Bad"))
    assert ok(folder, "edit", "a-001", "--from", kept, "--db", "t.db").stderr == "a-001: edited\n"


def test_an_edit_of_what_was_changed_meanwhile_is_kept(folder: Path) -> None:
    reject = f"import subprocess; subprocess.run([{str(KARMA)!r}, 'db', 'reject', 'a-001', 'why', '--db', 't.db'])"
    reject = reject.replace("'t.db'])", "'t.db'], stderr=subprocess.DEVNULL)")
    line = one_line_of(in_editor(folder, f"{reject}; text = text.replace('Good', 'Bad')", "a-001"), 1)
    assert line.startswith("'a-001' was changed while it was edited; edit it again; your text is in ")
    assert stored(whole(folder / "t.db"))[0]["status"] == "rejected"


def test_an_editor_that_is_missing_or_fails_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "t.db").read_bytes()
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    assert refused(folder, "edit", "a-001", "--db", "t.db", exit_code=2).startswith("neither VISUAL nor EDITOR is set")
    monkeypatch.setenv("EDITOR", "no-such-editor --wait")
    line = refused(folder, "edit", "a-001", "--db", "t.db", exit_code=2)
    assert line.startswith("the editor 'no-such-editor --wait' cannot be started (")
    monkeypatch.setenv("VISUAL", "false")
    line = refused(folder, "edit", "a-001", "--db", "t.db")
    assert line.startswith("the editor 'false' ended with 1; nothing was written; its text is in ")
    assert (folder / "t.db").read_bytes() == before


def test_history_for_people_and_for_machines(folder: Path) -> None:
    ok(folder, "reject", "a-001", "thin", "--db", "t.db")
    people = ok(folder, "history", "a-001", "--db", "t.db").stdout.splitlines()
    assert [line.split()[2:4] for line in people] == [["reject", "a-001"], ["import", "a-001"]]
    assert people[0].endswith("rejection_reason, status")
    (latest,) = json.loads(ok(folder, "history", "--limit", "1", "--json", "--db", "t.db").stdout)
    assert (latest["number"], latest["command"], latest["id"]) == (4, "reject", "a-001")
    assert latest["patch"] == {"set": {"rejection_reason": None, "status": "accepted"}}
    then = json.loads(ok(folder, "history", "a-001", "--at", "1", "--db", "t.db").stdout)
    assert (then["status"], then["conversations"]) == ("accepted", row("a-001")["conversations"])


def test_a_prompt_is_stored(folder: Path) -> None:
    (folder / "persona.txt").write_text("Be calm.\n")
    for said in ("stored", "is there with this text already"):
        assert ok(folder, "prompt", "persona", "persona.txt", "--db", "t.db").stderr == f"persona: {said}\n"
    assert stored(whole(folder / "t.db"), "system_prompts") == [
        {"id": "persona", "content": "Be calm.", "description": None}
    ]


def test_dump_and_restore(folder: Path) -> None:
    assert ok(folder, "dump", "-o", "dump.jsonl", "--db", "t.db").stdout == ""
    text = (folder / "dump.jsonl").read_text("utf-8")
    assert ok(folder, "dump", "--db", "t.db").stdout == text
    assert ok(folder, "restore", "dump.jsonl", "--db", "new.db").stderr == "new.db: 3 examples restored\n"
    assert ok(folder, "dump", "--db", "new.db").stdout == text
    assert refused(folder, "restore", "dump.jsonl", "--db", "new.db").startswith("new.db: is there already; restore to")
    ok(folder, "archive", "a-001", "--db", "new.db")
    ok(folder, "restore", "dump.jsonl", "--db", "new.db", "--replace")
    assert ok(folder, "dump", "--db", "new.db").stdout == text


def test_upgrade_of_a_copy_of_the_shipped_database(tmp_path: Path) -> None:
    (tmp_path / "t.db").write_bytes((ROOT / "data" / "training.db").read_bytes())
    before = ok(tmp_path, "dump", "--db", "t.db").stdout
    assert ok(tmp_path, "upgrade", "--db", "t.db").stderr.startswith("t.db: schema ")
    assert ok(tmp_path, "upgrade", "--db", "t.db").stderr == "t.db: schema 2\n"
    assert ok(tmp_path, "dump", "--db", "t.db").stdout == before
    whole(tmp_path / "t.db")


def test_many_writers_at_once_lose_nothing(folder: Path) -> None:
    commands = [["accept", "a-002"], ["reject", "b-001", "thin"], ["archive", "a-001"], ["accept", "b-001"]]
    running = [
        subprocess.Popen([str(KARMA), "db", *words, "--db", "t.db"], cwd=folder, stderr=subprocess.PIPE, text=True)
        for words in commands
    ]
    said = [(process.communicate()[1], process.returncode) for process in running]
    assert all(code == 0 for _, code in said), said
    entries = stored(whole(folder / "t.db"), "history")
    assert sorted(entry["command"] for entry in entries[3:]) == ["accept", "accept", "archive", "reject"]


def test_make_check_fails_on_data_that_is_only_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "training.db-wal").write_bytes(b"x")
    command = ["make", "check", "--old-file", "install", "BIN=bin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith(
        "error: data/training.db-wal: holds changes that the file in git lacks; run karma db up"
    )
    (tmp_path / "data" / "training.db-wal").write_bytes(b"")
    done = subprocess.run([*command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "training.db-wal" in done.stdout
