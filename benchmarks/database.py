"""Time and memory of `karma db` on a generated database of 200,000 examples (about 500 MB), in a temporary folder.

python benchmarks/database.py [--rows 200000] [--json database.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import psutil

KARMA = Path(sys.executable).with_name("karma")
SHIPPED = Path(__file__).parents[1] / "data" / "training.db"
WORDS_A_ROW = 120
_ACCENTS = str.maketrans("aceirsuyz", "áčéířšůýž")  # for one row in twenty
REPEATS, SHORT_REPEATS = 3, 7  # the fastest counts, the others are the machine's


class Run(NamedTuple):
    """One command, from its start to its end. On a machine that others use, `cpu_seconds` is the steadier number."""

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Measured:
    """One command, what was counted per second, if anything, and what was hoped for."""

    command: str
    run: Run
    rate: str = ""
    target: str = ""


def generate(rows: int) -> Iterator[str]:
    """Lines of an import file. Words follow a law like that of a language: few are frequent, most are rare."""
    choose = random.Random(1)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(choose.choices(letters, k=choose.randint(2, 9))) for _ in range(30_000)]
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(len(words))))
    for number in range(rows):
        chosen = choose.choices(words, cum_weights=weights, k=WORDS_A_ROW)
        if number % 20 == 0:
            chosen = [word.translate(_ACCENTS) for word in chosen]
        turns = [
            {"role": "user", "content": " ".join(chosen[:30])},
            {"role": "assistant", "content": " ".join(chosen[30:80]) + "\n\n" + " ".join(chosen[80:])},
        ]
        yield json.dumps(
            {
                "id": f"example-{number:06}",
                "source": "generated",
                "category": f"category-{number % 60:02}",
                "status": ("accepted", "accepted", "accepted", "pending", "rejected")[number % 5],
                "hermes_score": number % 41,
                "conversations": turns,
            },
            ensure_ascii=False,
        )


def run(*words: str | Path) -> Run:
    """Run a command of `karma db`."""
    started = time.perf_counter()
    process = subprocess.Popen([KARMA, "db", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    print(f"{words[0]}: {seconds:.2f} s", file=sys.stderr)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"karma db {' '.join(map(str, words))} ended with {process.returncode}: {said}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def measure(folder: Path, rows: int) -> list[Measured]:
    """A row for each command."""
    database, file, output = folder / "training.db", folder / "rows.jsonl", folder / "output.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{line}\n" for line in generate(rows))
    with_database = ("--db", database)
    found: list[Measured] = []

    done = run("import", file, *with_database)
    found.append(Measured("import", done, f"{rows / done.seconds:,.0f} rows/s", ">= 3,000 rows/s"))
    short: dict[str, tuple[list[str | Path], float]] = {
        "start-up (one row of history)": (["history", "--limit", "1", *with_database], 0.0),
        "stats": (["stats", *with_database], 1.0),
        "search": (["search", "don't", *with_database], 0.2),
        "search, the two most frequent words": (["search", most_frequent_words(file), *with_database], 0.2),
        "show": (["show", f"example-{rows // 2:06}", *with_database], 0.1),
        "stats of the shipped data": (["stats", "--db", SHIPPED], 0.4),
    }
    # In turn, so that the machine is the same for all.
    times = [{name: run(*words) for name, (words, _) in short.items()} for _ in range(SHORT_REPEATS)]
    start, *others = (Measured(name, min(each[name] for each in times)) for name in short)
    found.append(start)
    for each in others:
        target = short[each.command][1]
        beyond = f"{each.run.seconds - start.run.seconds:.2f} s beyond start-up"
        is_whole = each.command.endswith("shipped data")
        found.append(replace(each, rate="" if is_whole else beyond, target=f"< {target} s"))
    for name, least in (("export", ">= 50 MB/s"), ("dump", "")):
        done = min(run(name, "-o", output, *with_database) for _ in range(REPEATS))
        found.append(Measured(name, done, f"{output.stat().st_size / done.seconds / 1e6:.0f} MB/s", least))
    done = run("restore", output, "--db", folder / "restored.db")
    found.append(Measured("restore, with every check", done, f"{rows / done.seconds:,.0f} rows/s"))
    return found


def most_frequent_words(file: Path) -> str:
    """Two words that stand in nearly every row: the worst that can be ranked."""
    with file.open(encoding="utf-8") as stream:
        rows = [json.loads(line)["conversations"] for line in itertools.islice(stream, 1000)]
    counts = Counter(word for turns in rows for turn in turns for word in turn["content"].split())
    return " ".join(word for word, _ in counts.most_common(2))


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), parsed.rows)
        size = (Path(name) / "training.db").stat().st_size
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    print(f"machine: {platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, load {load}")
    print(f"database: {parsed.rows:,} examples, {size / 1e6:.0f} MB\n")
    print("| command | seconds | CPU seconds | rate | target | peak memory, MB |\n|---|---|---|---|---|---|")
    for row in found:
        used = f"{row.run.seconds:.2f} | {row.run.cpu_seconds:.2f} | {row.rate} | {row.target}"
        print(f"| {row.command} | {used} | {row.run.peak_rss_bytes / 1e6:.0f} |")
    if parsed.json:
        parsed.json.write_text(
            json.dumps([{**asdict(row), "run": row.run._asdict()} for row in found], indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
