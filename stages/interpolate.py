"""Blend two adapters into one, and record the error that averaging their factors would have made.

    python -m stages.interpolate --params params.yaml --first models/adapters/v6 --second models/adapters/v8 \\
        --output models/adapters/blend --metrics metrics/interpolate.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.adapters.blend import blend_adapters
    from karma_electric.adapters.params import InterpolateParams

    params = section(parsed, "interpolate", InterpolateParams)
    write_json(parsed.metrics, blend_adapters(parsed.first, parsed.second, parsed.output, params=params))


if __name__ == "__main__":
    run_stage(arguments(__doc__, "first", "second", "output", "metrics"), work)
