"""Write one GGUF file of the merged model, and check it in llama.cpp against PyTorch.

    python -m stages.quantize --params params.yaml --model models/merged --type Q8_0 \\
        --output models/gguf/NAME-v8-Q8_0.gguf --metrics metrics/quantize/Q8_0.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, report, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.gguf_files.quantize import make_gguf
    from karma_electric.release.params import ReleaseParams

    release = section(parsed, "release", ReleaseParams)
    check = make_gguf(
        parsed.model, parsed.output, gguf_type=parsed.type, name=f"{release.name}-{release.version}", report=report
    )
    write_json(parsed.metrics, check.as_dict())


if __name__ == "__main__":
    parser = arguments(__doc__, "model", "output", "metrics")
    parser.add_argument("--type", required=True, help="the quantisation, such as Q8_0")
    run_stage(parser, work)
