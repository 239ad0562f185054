"""Measure the persona axis on the merged model, and the projections of generated answers on it.

    python -m stages.extract_axis --params params.yaml --model models/merged \\
        --contrast-prompts data/prompts/axis-contrast.jsonl --generic-prompts data/prompts/generic.jsonl \\
        --persona-prompt data/prompts/persona.txt --calibration-prompts data/prompts/axis-calibration.jsonl \\
        --training-set data/sets/v8.jsonl --axis models/axis/axis.safetensors \\
        --projections models/axis/projections.safetensors --plot plots/axis-norm.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, report, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.axis.extraction import extract_axis
    from karma_electric.axis.params import AxisParams

    result = extract_axis(
        parsed.model,
        contrast_prompts=parsed.contrast_prompts,
        generic_prompts=parsed.generic_prompts,
        persona_prompt=parsed.persona_prompt,
        calibration_prompts=parsed.calibration_prompts,
        training_set=parsed.training_set,
        output_axis=parsed.axis,
        output_projections=parsed.projections,
        params=section(parsed, "axis", AxisParams),
        report=report,
    )
    write_json(parsed.plot, result["layers"])


if __name__ == "__main__":
    paths = ("model", "contrast-prompts", "generic-prompts", "persona-prompt", "calibration-prompts", "training-set")
    run_stage(arguments(__doc__, *paths, "axis", "projections", "plot"), work)
