"""Publish the built release to a hub on this machine, publish it again, and verify it from there; seconds and MB/s.

python benchmarks/publishing.py [--json publishing.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tests.release.publish_worker import REPOSITORY, client_environment
from tests.release.release_files import make_key
from tests.release.shipped import shipped_clone

KARMA = Path(sys.executable).with_name("karma")
REPO = "org/embedded"


@dataclass(frozen=True)
class Measured:
    """One command, from its start to its end. `cpu_seconds` are the command's own, without the hub's."""

    command: str
    seconds: float
    cpu_seconds: float
    megabytes: float


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub in a process of its own."""
    command = [sys.executable, "-m", "tests.hub_server", "--folder", str(folder), "--port", "0"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+(?=,)", process.stdout.readline())
        assert found is not None
        try:
            yield found[0]
        finally:
            process.terminate()


def run(name: str, *words: str | Path, folder: Path, environment: dict[str, str], megabytes: float) -> Measured:
    """Run `karma` in `folder`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [KARMA, *words], cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"karma {' '.join(map(str, words))} ended with {process.returncode}: {said}")
    return Measured(name, seconds, usage.ru_utime + usage.ru_stime, megabytes)


def measure(place: Path) -> list[Measured]:
    """A row for each command."""
    project, key = shipped_clone(place / "clone"), make_key(place / "keys")[0]
    manifest = json.loads((project / "models/release/manifest.json").read_text("utf-8"))
    megabytes = sum(entry["size"] for entry in manifest["files"]) / 1e6
    sets = sum(path.stat().st_size for path in (project / "data/sets").glob("*.json*")) / 1e6
    publish = ("publish", "--repo", REPO, "--key", key, "--candidate", "--reason", "a measurement")
    (place / "empty").mkdir()
    with hub(place / "hub") as url:
        environment = client_environment(url, place / "home")

        def timed(name: str, *words: str | Path, folder: Path = project, size: float = megabytes) -> Measured:
            return run(name, *words, folder=folder, environment=environment, megabytes=size)

        return [
            timed("publish, signed", *publish),
            timed("publish again: nothing to do", *publish),
            timed("publish the training sets", *publish, "--dataset", size=sets),
            timed("verify ORG/NAME, with the download", "verify", REPO, folder=place / "empty"),
        ]


def main() -> None:
    """Publish, verify, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name))
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(f"machine: {platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, load {load}")
    print(f"release: {found[0].megabytes:.1f} MB\n")
    print("| command | seconds | CPU seconds | MB/s |\n|---|---|---|---|")
    for row in found:
        print(f"| {row.command} | {row.seconds:.1f} | {row.cpu_seconds:.1f} | {row.megabytes / row.seconds:,.0f} |")
    if parsed.json:
        parsed.json.write_text(json.dumps([asdict(row) for row in found], indent=2) + "\n")


if __name__ == "__main__":
    main()
