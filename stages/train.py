"""Fine-tune one QLoRA adapter on one training set.

    python -m stages.train --params params.yaml --base models/base --training-set data/sets/v8.jsonl \\
        --output models/adapters/v8 --loss-curve plots/loss/v8.json --metrics metrics/train/v8.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, report, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.training.params import TrainParams
    from karma_electric.training.qlora import train_adapter

    metrics = train_adapter(
        parsed.base,
        parsed.training_set,
        parsed.output,
        params=section(parsed, "train", TrainParams),
        loss_curve=parsed.loss_curve,
        report=report,
    )
    write_json(parsed.metrics, metrics)


if __name__ == "__main__":
    run_stage(arguments(__doc__, "base", "training-set", "output", "loss-curve", "metrics"), work)
