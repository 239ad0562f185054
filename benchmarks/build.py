"""Build the shipped recipe from nothing in a temporary clone: wall time and peak memory of every stage.

python benchmarks/build.py [--json build.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil

SAMPLE_SECONDS = 0.2


class PeakMemory(threading.Thread):
    """Samples the resident memory of a process and all that it started."""

    def __init__(self, process_id: int) -> None:
        super().__init__(daemon=True)
        self.process = psutil.Process(process_id)
        self.peak_rss_bytes = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(SAMPLE_SECONDS):
            try:
                family = [self.process, *self.process.children(recursive=True)]
                total = sum(member.memory_info().rss for member in family)
            except psutil.NoSuchProcess:
                continue
            self.peak_rss_bytes = max(self.peak_rss_bytes, total)

    def take(self) -> int:
        """The peak since the last call."""
        peak, self.peak_rss_bytes = self.peak_rss_bytes, 0
        return peak


def measure(folder: Path) -> list[dict[str, object]]:
    """`dvc repro` in `folder`; a row for each stage."""
    started = time.monotonic()
    process = subprocess.Popen(["dvc", "repro"], cwd=folder, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    memory = PeakMemory(process.pid)
    memory.start()
    rows: list[dict[str, object]] = []
    stage = ""
    for line in process.stdout:
        found = re.match(r"Running stage '([^']+)':", line)
        if not found:
            continue
        now = time.monotonic()
        if stage:
            rows.append({"stage": stage, "seconds": now - started, "peak_rss_bytes": memory.take()})
        stage, started = found[1], now
    if process.wait():
        raise SystemExit(f"dvc repro ended with {process.returncode}")
    rows.append({"stage": stage, "seconds": time.monotonic() - started, "peak_rss_bytes": memory.take()})
    memory.ended.set()
    return rows


def main() -> None:
    """Clone, build, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parsed = parser.parse_args()
    repository = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(repository), str(folder)], check=True)
        rows = measure(folder)
        shutil.rmtree(folder)
    total = sum(float(str(row["seconds"])) for row in rows)
    print(f"machine: {platform.processor() or platform.machine()}, {psutil.cpu_count()} cores")
    print("| stage | seconds | peak memory, GB |\n|---|---|---|")
    for row in rows:
        print(f"| {row['stage']} | {row['seconds']:.1f} | {int(str(row['peak_rss_bytes'])) / 1e9:.2f} |")
    print(f"| all | {total:.1f} | {max(int(str(row['peak_rss_bytes'])) for row in rows) / 1e9:.2f} |")
    if parsed.json:
        parsed.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
