"""Make one training set: the rows of its source, with the patches of its version.

    python -m stages.export --params params.yaml --source data/sets/v7.jsonl --patches data/patches/v8 \\
        --suites data/suites --persona-prompt data/prompts/persona.txt \\
        --evaluator-prompt data/prompts/evaluator.txt \\
        --output data/sets/v8.jsonl --manifest data/sets/v8.manifest.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, run_stage, section


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.training_db.export import export_set
    from karma_electric.training_db.params import ExportParams

    export_set(
        parsed.source,
        patches=parsed.patches,
        suites=parsed.suites,
        persona_prompt=parsed.persona_prompt,
        evaluator_prompt=parsed.evaluator_prompt,
        output=parsed.output,
        manifest=parsed.manifest,
        params=section(parsed, "export", ExportParams),
    )


if __name__ == "__main__":
    paths = ("source", "patches", "suites", "persona-prompt", "evaluator-prompt", "output", "manifest")
    run_stage(arguments(__doc__, *paths), work)
