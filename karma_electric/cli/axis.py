"""`karma axis`: look at an axis file, check it, and prove that a cap acts."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.paths import AXIS, PROJECTIONS, PROMPTS, RECIPE, SWEEP_OUTPUT
from karma_electric.errors import InputError, IntegrityError
from karma_electric.wording import counted

if TYPE_CHECKING:
    from karma_electric.axis.describe import AxisDescription

app = typer.Typer(help="The axis of a cap: its files, and proofs.", no_args_is_help=True)

Axis = Annotated[Path, typer.Argument(help="An axis file: .gguf, .pt or .safetensors.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]


@app.command("show")
def show(axis: Axis, json_output: Json = False) -> None:
    """Print layers, norms, ceilings and firing rates of an axis file.

    Example: karma axis show models/axis/bodhisattva_axis_v8.gguf
    """
    import json

    from karma_electric.axis.describe import describe

    found = describe(axis)
    if json_output:
        print(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        _print(found)


@app.command("lint")
def lint(
    axis: Axis,
    model: Annotated[Path | None, typer.Option(help="A GGUF file or a folder that the axis is for.")] = None,
    threshold: Annotated[
        float | None, typer.Option("--acap-threshold", help="T > 0, for a file without thresholds.")
    ] = None,
) -> None:
    """Check an axis file as a careful loader does. Any fault is an error.

    Example: karma axis lint models/axis/bodhisattva_axis_v8.gguf
    """
    from karma_electric.axis.describe import lint as check

    found = check(axis, model=model, threshold=threshold)
    print(f"{axis}: sound, {counted(len(found.layers), 'layer')} of {found.hidden_size} values", file=sys.stderr)


@app.command("conform")
def conform(
    model: Annotated[Path, typer.Argument(help="A folder with config, tokenizer and safetensors.")],
    quantized: Annotated[list[str] | None, typer.Option(help="Quantised types to compare as well.")] = None,
    document: Annotated[
        Path | None, typer.Option(help="Write the tables into this document, between its markers.")
    ] = None,
) -> None:
    """Plant caps in a model and prove them in numpy, PyTorch and llama.cpp. Exit code 6 where one does not conform.

    Example: karma axis conform models/base
    """
    import tempfile

    from karma_electric.capping.conformance_report import parity_table, read_around, results_table, write_tables
    from karma_electric.capping.conformance_run import conform as run

    if document is not None:
        read_around(document)  # a document without markers is refused now, not after the proofs
    with tempfile.TemporaryDirectory(prefix="karma-conform-") as work:
        found = run(
            model,
            Path(work),
            quantized=["Q8_0"] if quantized is None else quantized,
            report=lambda line: print(line, file=sys.stderr),
        )
    print(results_table(found.results))
    print(parity_table(found.parity))
    if document is not None:
        write_tables(document, model.name, found)
    if not found.conforms:
        failed = ", ".join(f"{each.path} ({each.case})" for each in found.results if not each.conforms)
        raise IntegrityError(f"{model}: the cap does not conform in {failed}")


@app.command("sweep")
def sweep(
    model: Annotated[Path, typer.Argument(help="The folder of the model that the axis was measured on.")],
    output: Annotated[Path, typer.Option(help="The CSV; the plot gets the same name with .svg.")] = SWEEP_OUTPUT,
    axis: Annotated[Path, typer.Option(help="Of the stage extract-axis.")] = AXIS,
    projections: Annotated[Path, typer.Option(help="Of the same stage.")] = PROJECTIONS,
    prompts: Annotated[Path, typer.Option(help="The folder of the prompt files.")] = PROMPTS,
    params: Annotated[Path, typer.Option(help="The recipe, for the layers.")] = RECIPE,
    percentile: Annotated[
        list[float] | None,
        typer.Option(help="Of the persona's tokens; may be repeated. Without both rules: 25, 50, 75, 90, k 1."),
    ] = None,
    k_sigma: Annotated[list[float] | None, typer.Option(help="tau = mean - k std; may be repeated.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="May be repeated; 0.5 and 1 without it.")] = None,
) -> None:
    """Try thresholds and alphas: firing rate, change on neutral text, drift that is left; as CSV and plot.

    Example: karma axis sweep models/merged --percentile 75 --alpha 1
    """
    from karma_electric.axis.params import AcapParams
    from karma_electric.axis.sweep import sweep as run
    from karma_electric.axis.sweep import sweep_csv
    from karma_electric.parameters import read_section

    for value in percentile or ():
        if not 0 < value < 100:
            raise InputError(f"--percentile {value:g}: expected more than 0 and less than 100")
    for value in k_sigma or ():
        if not 0 <= value < math.inf:
            raise InputError(f"--k-sigma {value:g}: expected 0 or more")
    for value in alpha or ():
        if not 0 < value <= 1:
            raise InputError(f"--alpha {value:g}: expected more than 0 and at most 1")

    rules = [("percentile", value) for value in percentile or ([] if k_sigma else [25, 50, 75, 90])]
    rules += [("mean_k_sigma", value) for value in k_sigma or ([] if percentile else [1.0])]
    rows = run(
        model,
        axis,
        projections,
        persona_prompt=prompts / "persona.txt",
        generic_prompts=prompts / "generic.jsonl",
        calibration_prompts=prompts / "axis-calibration.jsonl",
        rules=rules,
        alphas=alpha or [0.5, 1.0],
        output_csv=output,
        output_plot=output.with_suffix(".svg"),
        params=read_section(params, "acap", AcapParams),
        report=lambda line: print(line, file=sys.stderr),
    )
    print(sweep_csv(rows), end="")


def _print(found: AxisDescription) -> None:
    print(f"{found.path}  sha256 {found.sha256[:12]}…  hidden size {found.hidden_size}  alpha {found.alpha:g}")
    for name, value in found.identity.items():
        print(f"  {name:<26}{value:.4g}" if isinstance(value, float) else f"  {name:<26}{value}")
    print(f"  {'layer':>5}  {'norm':>10}  {'tau':>10}")
    for each in found.layers:
        print(f"  {each.layer:>5}  {each.norm:>10.4g}  {'-' if each.tau is None else f'{each.tau:.4g}':>10}")
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
