"""Runs `karma` again and again in one process, whose client of the hub was imported with a test's address.

A line on stdin is {"folder", "words"}; the answer is {"code", "out", "err"}. The client's waits between its retries
are left out.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hub_server.server import TOKEN

REPOSITORY = Path(__file__).parents[2]


def client_environment(endpoint: str, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """For a process that publishes to `endpoint` and keeps what it keeps below `home`."""
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "KARMA_"))}
    kept |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "TMPDIR": str(home / "tmp")}
    return kept | {"PYTHONPATH": str(REPOSITORY)} | ({"HF_TOKEN": token} if token else {})


class Worker:
    """The process, and how to ask it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def karma(self, *words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"folder": str(folder), "words": [str(word) for word in words]}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(words, answer["code"], answer["out"], answer["err"])


@contextlib.contextmanager
def worker(environment: dict[str, str]) -> Iterator[Worker]:
    command = [sys.executable, "-m", "tests.release.publish_worker"]
    with subprocess.Popen(
        command, env=environment, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Worker(process)
        finally:
            assert process.stdin
            process.stdin.close()


def _run(folder: str, words: list[str]) -> dict[str, Any]:
    from karma_electric.cli.main import main

    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["karma", *words]
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except Exception:
            traceback.print_exc()
            code = 70
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def _loop() -> None:
    time.sleep = lambda _: None
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(_run(asked["folder"], asked["words"])), file=sys.__stdout__, flush=True)


if __name__ == "__main__":
    _loop()
