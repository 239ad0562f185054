"""Fingerprint the code of every stage, and validate the recipe.

python -m stages.fingerprint --params params.yaml --constraints constraints.txt --output fingerprints
"""

from __future__ import annotations

import argparse
from pathlib import Path

from stages.entry import arguments, run_stage

STAGES = (
    "base",
    "export",
    "train",
    "interpolate",
    "merge",
    "quantize",
    "extract_axis",
    "calibrate_thresholds",
    "gate",
    "release",
)


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.fingerprint.write import write_fingerprints

    entries = {stage: f"stages.{stage}" for stage in STAGES}
    write_fingerprints(Path(), entries, constraints=parsed.constraints, output=parsed.output)


if __name__ == "__main__":
    run_stage(arguments(__doc__, "constraints", "output"), work)
