"""Render the model card, the manifest, the recipe and the Ollama files of a release.

    python -m stages.release --params params.yaml --base models/base --merged models/merged \\
        --adapters models/adapters --gguf models/gguf --axis models/axis --sets data/sets --metrics metrics \\
        --evidence models/evidence/gate.jsonl --versions data/versions.yaml \\
        --persona-prompt data/prompts/persona.txt --constraints constraints.txt --output models/release
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, run_stage, section


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.adapters.params import InterpolateParams
    from karma_electric.gguf_files.params import QuantizeParams
    from karma_electric.parameters import read_yaml
    from karma_electric.release.build import ReleaseInputs, build_release
    from karma_electric.release.params import ReleaseParams

    release = section(parsed, "release", ReleaseParams)
    interpolate = section(parsed, "interpolate", InterpolateParams)
    quantize = section(parsed, "quantize", QuantizeParams)
    recipe = read_yaml(parsed.params)
    sources = recipe["sets"]
    trained = (interpolate.from_, interpolate.to)
    stem = f"{release.name}-{release.version}"
    bodhisattva = f"bodhisattva_axis_{release.version}"
    axis_names = (f"{bodhisattva}.gguf", f"{bodhisattva}.pt", "axis.safetensors", "projections.safetensors")
    inputs = ReleaseInputs(
        base_manifest=parsed.base / "manifest.json",
        merged=parsed.merged,
        adapters={name: parsed.adapters / name for name in (*trained, "blend")},
        gguf_files={kind: parsed.gguf / f"{stem}-{kind}.gguf" for kind in quantize.types},
        judged_type=quantize.judged,
        axis_files=tuple(parsed.axis / name for name in axis_names),
        axis_stats=parsed.axis / f"axis_stats_{release.version}.json",
        set_manifests={name: parsed.sets / f"{name}.manifest.json" for name in sources},
        set_sources=sources,
        train_metrics={name: parsed.metrics / "train" / f"{name}.json" for name in trained},
        quantize_metrics={kind: parsed.metrics / "quantize" / f"{kind}.json" for kind in quantize.types},
        metrics={name: parsed.metrics / f"{name}.json" for name in ("interpolate", "merge", "acap", "gate")},
        gate_report=parsed.metrics / "gate.md",
        evidence=parsed.evidence,
        versions=parsed.versions,
        persona_prompt=parsed.persona_prompt,
        constraints=parsed.constraints,
        recipe=recipe,
    )
    build_release(inputs, parsed.output, params=release)


if __name__ == "__main__":
    paths = ("base", "merged", "adapters", "gguf", "axis", "sets", "metrics", "evidence", "versions")
    run_stage(arguments(__doc__, *paths, "persona-prompt", "constraints", "output"), work)
