"""Fine-tune one QLoRA adapter on one training set.

    python -m stages.train --params params.yaml --base models/base --training-set data/sets/v8.jsonl \\
        --output models/adapters/v8 --loss-curve plots/loss/v8.json --metrics metrics/train/v8.json

Interrupted at any step, it goes on where it was. Several GPUs: KARMA_LAUNCHER=accelerate, or `launcher: accelerate` in
the untracked file local.yaml.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from stages.entry import arguments, report, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.training.launch import launch, must_launch, run_settings

    settings = run_settings(Path("local.yaml"), os.environ)
    if must_launch(settings, os.environ):
        launch(settings, "stages.train", sys.argv[1:])
        return
    from karma_electric.fingerprint.write import fingerprint
    from karma_electric.training.params import TrainParams
    from karma_electric.training.qlora import train_adapter
    from karma_electric.working_store import working_store

    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # rows are of every length
    metrics = train_adapter(
        parsed.base,
        parsed.training_set,
        parsed.output,
        params=section(parsed, "train", TrainParams),
        loss_curve=parsed.loss_curve,
        report=report,
        store=working_store("training"),
        code=fingerprint(Path(), "stages.train"),
    )
    if os.environ.get("RANK", "0") == "0":
        write_json(parsed.metrics, metrics)


if __name__ == "__main__":
    run_stage(arguments(__doc__, "base", "training-set", "output", "loss-curve", "metrics"), work)
