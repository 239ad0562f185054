"""A process that is killed in the middle of a write leaves all of it, or nothing.

The killed process is a fork that ends itself: at a step of SQLite's machine, at the start of a statement, or (by the
kernel, through a limit on file sizes) in the middle of a write to a file, the log and the checkpoint included.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from karma_electric.training_db import curation, store
from karma_electric.training_db.dump import dump_lines, restore, write_dump
from karma_electric.training_db.history import check_database
from karma_electric.training_db.store import open_to_write
from tests.training_db.rows import NOW, import_file, import_rows, row, write_rows

MACHINE_STEPS = 20
WAYS = ("step", "statement", "byte")


def import_many(folder: Path) -> None:
    import_file(folder / "training.db", folder / "many.jsonl", on_conflict="replace")


def accept_many(folder: Path) -> None:
    with open_to_write(folder / "training.db") as connection:
        for number in range(40):
            curation.accept(connection, f"old-{number}", at=NOW)


def restore_over(folder: Path) -> None:
    restore(folder / "dump.jsonl", folder / "training.db", replace=True)


def restore_new(folder: Path) -> None:
    restore(folder / "dump.jsonl", folder / "new.db")


OPERATIONS = {"import": import_many, "accept": accept_many, "restore over": restore_over, "restore new": restore_new}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a database, rows to import into it, and a dump of what it then holds."""
    folder = tmp_path_factory.mktemp("prepared")
    import_rows(folder / "training.db", [row(f"old-{number}", f"Answer {number}. " * 20) for number in range(60)])
    changed = [row(f"old-{number}", "Another answer. " * 30) for number in range(5)]
    write_rows(folder / "many.jsonl", [row(f"new-{number}", f"Text {number}. " * 50) for number in range(60)] + changed)
    (folder / "after.db").write_bytes((folder / "training.db").read_bytes())
    import_file(folder / "after.db", folder / "many.jsonl", on_conflict="replace")
    write_dump(folder / "after.db", folder / "dump.jsonl")
    return folder


def copy_of(prepared: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("training.db", "many.jsonl", "dump.jsonl"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    return folder


class Counting:
    """Counts what SQLite does in this process, and ends the process with SIGKILL at a given count."""

    def __init__(self, way: str, kill_at: int | None) -> None:
        self.way, self.kill_at, self.count = way, kill_at, 0
        self.real_connect = sqlite3.connect

    def tick(self, *_: object) -> None:
        self.count += 1
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = self.real_connect(*arguments, **options)
        connection.execute("PRAGMA cache_size = -64")
        if self.way == "step":
            connection.set_progress_handler(self.tick, MACHINE_STEPS)
        elif self.way == "statement":
            connection.set_trace_callback(self.tick)
        return connection


def in_a_fork(operation: Callable[[Path], None], folder: Path, way: str, kill_at: int | None) -> tuple[int, int]:
    """Run it in a child; its wait status, and how far it can be counted: steps, statements, or bytes of a file."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        counting = Counting(way, kill_at)
        sqlite3.connect = counting.connect  # type: ignore[assignment]
        store._CACHE_KIBIBYTES = 64  # so that the log is written to before the commit, too
        if way == "byte":
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            limit = resource.RLIM_INFINITY if kill_at is None else kill_at
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            operation(folder)
            os.write(writer, str(counting.count).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    return os.waitpid(child, 0)[1], int(said or 0)


def largest_write(operation: Callable[[Path], None], prepared: Path, folder: Path) -> int:
    """The least limit on file sizes, in pages, under which the operation ends well."""
    low, high = 0, 1 << 12
    while low < high:
        middle = (low + high) // 2
        status, _ = in_a_fork(operation, copy_of(prepared, folder / f"{low}-{high}"), "byte", middle * 4096)
        low, high = (low, middle) if status == 0 else (middle + 1, high)
    return low * 4096


def state_of(path: Path) -> str | None:
    """The dump of a database that another program can open, and that is whole; None when there is no file."""
    if not path.exists():
        return None
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with open_to_write(path) as connection:
        check_database(connection, str(path))
    return "".join(dump_lines(path))


def kill_at_random_points(name: str, times: int, prepared: Path, tmp_path: Path, seed: int) -> None:
    operation, target = OPERATIONS[name], "new.db" if name == "restore new" else "training.db"
    done = copy_of(prepared, tmp_path / "done")
    before = state_of(done / target)
    totals = {way: in_a_fork(operation, copy_of(prepared, tmp_path / f"whole {way}"), way, None) for way in WAYS[:2]}
    assert [status for status, _ in totals.values()] == [0, 0]
    operation(done)
    after = state_of(done / target)
    assert before != after
    last = {way: total for way, (_, total) in totals.items()}
    last["byte"] = largest_write(operation, prepared, tmp_path) - 4096  # a log is no whole number of pages
    choose = random.Random(seed)
    for number in range(times):
        way = WAYS[number % len(WAYS)]
        point = choose.randint(1, last[way])
        folder = copy_of(prepared, tmp_path / f"{number} {way} {point}")
        status, _ = in_a_fork(operation, folder, way, point)
        expected = signal.SIGXFSZ if way == "byte" else signal.SIGKILL
        assert os.WTERMSIG(status) == expected, f"{way} {point} of {last[way]}: not killed"
        assert state_of(folder / target) in (before, after), f"{way} {point} of {last[way]}"
        if state_of(folder / target) == before:
            operation(folder)  # what the dead process left is in nobody's way
            assert state_of(folder / target) == after


@pytest.mark.parametrize("name", OPERATIONS)
def test_all_or_nothing_is_left(name: str, prepared: Path, tmp_path: Path) -> None:
    kill_at_random_points(name, 6, prepared, tmp_path, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("name", OPERATIONS)
def test_all_or_nothing_is_left_fifty_times(name: str, prepared: Path, tmp_path: Path) -> None:
    kill_at_random_points(name, 50, prepared, tmp_path, seed=2)


@pytest.mark.parametrize("name", ["import", "accept"])
def test_a_killed_checkpoint_leaves_all(name: str, prepared: Path, tmp_path: Path) -> None:
    """The commit is done; the next to open the database folds the log in."""
    operation = OPERATIONS[name]
    _, statements = in_a_fork(operation, copy_of(prepared, tmp_path / "whole"), "statement", None)
    folder = copy_of(prepared, tmp_path / "killed")
    status, _ = in_a_fork(operation, folder, "statement", statements)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert (folder / "training.db-wal").stat().st_size > 0
    assert state_of(folder / "training.db") != state_of(copy_of(prepared, tmp_path / "before") / "training.db")
    assert not (folder / "training.db-wal").exists()
