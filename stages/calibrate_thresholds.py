"""Turn the measured projections into the cap's thresholds. Arithmetic: no model is loaded.

    python -m stages.calibrate_thresholds --params params.yaml --axis models/axis/axis.safetensors \\
        --projections models/axis/projections.safetensors --persona-prompt data/prompts/persona.txt \\
        --generic-prompts data/prompts/generic.jsonl --gguf models/axis/bodhisattva_axis_v8.gguf \\
        --pt models/axis/bodhisattva_axis_v8.pt --stats models/axis/axis_stats_v8.json \\
        --metrics metrics/acap.json --plot plots/projections.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.axis.calibration import calibrate
    from karma_electric.axis.params import AcapParams
    from karma_electric.release.params import ReleaseParams

    metrics = calibrate(
        parsed.axis,
        parsed.projections,
        output_gguf=parsed.gguf,
        output_pt=parsed.pt,
        output_stats=parsed.stats,
        plot_histogram=parsed.plot,
        params=section(parsed, "acap", AcapParams),
        release_date=section(parsed, "release", ReleaseParams).date.isoformat(),
        persona_prompt=parsed.persona_prompt,
        generic_prompts=parsed.generic_prompts,
    )
    write_json(parsed.metrics, metrics)


if __name__ == "__main__":
    paths = ("axis", "projections", "persona-prompt", "generic-prompts", "gguf", "pt", "stats", "metrics", "plot")
    run_stage(arguments(__doc__, *paths), work)
