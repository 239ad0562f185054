"""Judge the files that would ship. Ends well whatever the verdict is: the verdict is a metric.

    python -m stages.gate --params params.yaml --model models/gguf/NAME-v8-Q8_0.gguf \\
        --axis models/axis/bodhisattva_axis_v8.gguf --suites data/suites --persona-prompt data/prompts/persona.txt \\
        --evaluator-prompt data/prompts/evaluator.txt --metrics metrics/gate.json --report metrics/gate.md \\
        --evidence models/evidence/gate.jsonl --rates-plot plots/gate-rates.json \\
        --dimensions-plot plots/gate-dimensions.json --paraphrase-plot plots/gate-paraphrase.json
"""

from __future__ import annotations

import argparse

from stages.entry import arguments, report, run_stage, section, write_json


def work(parsed: argparse.Namespace) -> None:
    from karma_electric.gate.params import GateParams
    from karma_electric.gate.results import dimension_rows, paraphrase_rows, rate_rows
    from karma_electric.gate.run import run_gate
    from karma_electric.working_store import working_store

    run = run_gate(
        parsed.model,
        parsed.axis,
        suites=parsed.suites,
        persona_prompt=parsed.persona_prompt,
        evaluator_prompt=parsed.evaluator_prompt,
        evidence=parsed.evidence,
        report_markdown=parsed.report,
        params=section(parsed, "gate", GateParams),
        report=report,
        store=working_store("answers") / "answers.db",
    )
    write_json(parsed.metrics, run.metrics)
    write_json(parsed.rates_plot, rate_rows(run.result.checks))
    write_json(parsed.dimensions_plot, dimension_rows(run.result.evidence))
    write_json(parsed.paraphrase_plot, paraphrase_rows(run.result.evidence))


if __name__ == "__main__":
    plots = ("rates-plot", "dimensions-plot", "paraphrase-plot")
    paths = ("model", "axis", "suites", "persona-prompt", "evaluator-prompt", "metrics", "report", "evidence", *plots)
    run_stage(arguments(__doc__, *paths), work)
