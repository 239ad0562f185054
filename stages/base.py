"""Bring the base model into one form: bf16 safetensors, tokenizer, manifest.

python -m stages.base --params params.yaml --output models/base
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, report, run_stage


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.base_model.make import make_base
    from karma_electric.base_model.params import BaseSection
    from karma_electric.parameters import parse_parameters, read_yaml

    recipe = read_yaml(parsed.params)
    params = parse_parameters({"base": recipe.get("base")}, BaseSection, where=str(parsed.params)).base
    make_base(params, parsed.output, report=report)


if __name__ == "__main__":
    run_stage(arguments(__doc__, "output"), work)
