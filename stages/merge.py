"""Add an adapter to the base model's weights, tensor by tensor.

    python -m stages.merge --params params.yaml --base models/base --adapter models/adapters/blend \\
        --output models/merged --metrics metrics/merge.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, report, run_stage, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.adapters.merge import merge_adapter

    write_json(parsed.metrics, merge_adapter(parsed.base, parsed.adapter, parsed.output, report=report))


if __name__ == "__main__":
    run_stage(arguments(__doc__, "base", "adapter", "output", "metrics"), work)
