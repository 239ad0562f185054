"""How fast a release is hashed and signed, and verified: the built one, from the disk cache.

python benchmarks/verification.py [--repeats 5] [--json verification.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from karma_electric.graph import read_stages
from karma_electric.parameters import read_yaml
from karma_electric.release.digests import paths_below, sha256_files
from karma_electric.release.finishing import finish_release
from karma_electric.release.readiness import machine
from karma_electric.release.staging import read_release
from karma_electric.release.verify import verify_release

ROOT = Path(__file__).parents[1]
LEAST_RATE = 1e9  # bytes a second, of hashing and signing together


def stage(folder: Path) -> int:
    """Copy the built release into `folder`, as publishing does; its bytes."""
    stages = read_stages(ROOT / "dvc.yaml", read_yaml(ROOT / "params.yaml"))
    release = read_release(ROOT / "models/release", stages, report=lambda line: None)
    for name, (_, path) in release.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    shutil.copyfile(release.folder / "manifest.json", folder / "manifest.json")
    provenance = {"commit": "0" * 40, "dvc_lock_sha256": "0" * 64, "machine": machine(), "override": None}
    (folder / "provenance.json").write_text(json.dumps(provenance), "utf-8")
    return sum((folder / name).stat().st_size for name in paths_below(folder))


def fastest(work: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest run: the others are what else the machine did."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parsed = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as place:
        folder, key = Path(place) / "release", Path(place) / "key.pem"
        folder.mkdir()
        make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)]
        subprocess.run(make, check=True, capture_output=True)
        size = stage(folder)
        works: dict[str, Callable[[], object]] = {
            "hash every file": lambda: sha256_files(folder, paths_below(folder)),
            "hash, card, manifest, sign": lambda: finish_release(folder, private_key=key),
            "verify": lambda: verify_release(folder, report=lambda line: None),
        }
        seconds = {}
        for name, work in works.items():
            work()  # what is imported at first
            seconds[name] = fastest(work, parsed.repeats)
    print(
        f"{size / 1e6:.1f} MB, {os.cpu_count()} cores, {machine()['processor']}, Python {platform.python_version()}\n"
    )
    print("| work | seconds | GB/s |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.3f} | {size / taken / 1e9:.2f} |")
    if parsed.json:
        figures = {"bytes": size, "machine": machine(), "seconds": seconds}
        parsed.json.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")
    if size / seconds["hash, card, manifest, sign"] < LEAST_RATE:
        raise SystemExit("hashing and signing take longer than 1 GB/s allows")


if __name__ == "__main__":
    main()
