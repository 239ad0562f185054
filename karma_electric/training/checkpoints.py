"""Checkpoints of a training run: by content of what goes into it, whole or not there, verified when they are read.

They are no output. A run with them deleted, or interrupted anywhere, ends in the same adapter.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json
from karma_electric.errors import IntegrityError, SetupError
from karma_electric.integrity import atomic_directory, sha256_bytes, verify_manifest, write_manifest
from karma_electric.training.starter import Starter

_KEPT_CHECKPOINTS = 2  # the one before the newest, too, should the newest be damaged
_KEPT_RUNS = 4
_LEAST_SECONDS = 20.0
_SHARE_OF_TIME = 0.01
_PATIENCE_SECONDS = 60.0


def run_key(content: Mapping[str, Any]) -> str:
    """The name of a run: SHA-256 of everything that can change a bit of its result."""
    return sha256_bytes(canonical_json(dict(content)).encode("utf-8"))


class CheckpointStore:
    """The checkpoints of one run, in `folder`; made by `open_store`.

    Saving is due after 20 seconds, or so seldom that it takes a hundredth of the time; `every_step` is for tests.
    """

    def __init__(self, folder: Path, report: Callable[[str], None], *, every_step: bool = False) -> None:
        self.folder = folder
        self._report = report
        self._every_step = every_step
        self._wait_seconds = _LEAST_SECONDS
        self._saved_at = time.monotonic()

    def is_due(self) -> bool:
        """True when it is time for a checkpoint."""
        return self._every_step or time.monotonic() - self._saved_at >= self._wait_seconds

    @contextlib.contextmanager
    def saving(self, step: int) -> Iterator[Path]:
        """A folder to write a checkpoint into; it is there, with its manifest, when the block ends well."""
        started = time.monotonic()
        with atomic_directory(self.folder / f"step-{step:08d}") as folder:
            yield folder
            write_manifest(folder, {"kind": "training checkpoint", "step": step})
        for old in self._all()[_KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)
        self._saved_at = time.monotonic()
        self._wait_seconds = max(_LEAST_SECONDS, (self._saved_at - started) / _SHARE_OF_TIME)

    def newest(self) -> Path | None:
        """The newest checkpoint whose bytes are those that were written, or None. A damaged one is removed."""
        for folder in self._all():
            try:
                step = verify_manifest(folder)["identity"].get("step")
            except IntegrityError as error:
                self._report(f"train: a checkpoint is damaged and is not used ({error})")
                shutil.rmtree(folder)
                continue
            self._report(f"train: goes on after step {step}, from {folder}")
            return folder
        return None

    def _all(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def run_folder(store: Path, key: str) -> Path:
    """Where the checkpoints of run `key` are."""
    return store / key


@contextlib.contextmanager
def open_store(
    store: Path, key: str, output: Path, report: Callable[[str], None], *, every_step: bool = False
) -> Iterator[CheckpointStore]:
    """The checkpoints of run `key` in the working store, for this process alone; and `output`, for it alone, too.

    Raises SetupError when another process trains the same run, or into the same folder, and does not end.
    """
    runs, locks = store, store / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    place = sha256_bytes(str(output.resolve()).encode("utf-8"))
    with _locked(locks / f"output-{place[:32]}", f"writes {output}"), _locked(locks / key, "trains the same"):
        folder = run_folder(store, key)
        folder.mkdir(exist_ok=True)
        for unfinished in folder.glob(".*.partial"):
            shutil.rmtree(unfinished)
        os.utime(folder)
        _remove_old_runs(runs, locks)
        yield CheckpointStore(folder, report, every_step=every_step)


@contextlib.contextmanager
def _locked(path: Path, work: str) -> Iterator[None]:
    """Hold the lock `path`, which the kernel takes back however this process ends.

    An orphaned trainer gives its lock back within a pass, so the lock is waited for, but not for long.
    """
    starter, deadline = Starter(), time.monotonic() + _PATIENCE_SECONDS
    with path.open("a+") as stream:
        while not _try_lock(stream.fileno()):
            starter.require("train")
            if time.monotonic() > deadline:
                stream.seek(0)
                raise SetupError(f"train: process {stream.read(20).strip()} {work}; wait for it, or end it")
            time.sleep(0.1)
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_old_runs(runs: Path, locks: Path) -> None:
    """Delete all but the runs that were last used; one that is being trained is left alone."""
    folders = [entry for entry in runs.iterdir() if entry.is_dir() and entry != locks]
    folders.sort(key=lambda entry: entry.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT_RUNS:]:
        with (locks / folder.name).open("a+") as stream:
            if _try_lock(stream.fileno()):
                shutil.rmtree(folder)
