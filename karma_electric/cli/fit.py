"""`karma fit`: does a recipe fit this machine?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.output import print_json, print_table, say
from karma_electric.cli.paths import BASE, DVC_CACHE, RECIPE, SETS
from karma_electric.errors import SetupError
from karma_electric.wording import counted

if TYPE_CHECKING:
    from karma_electric.fit.report import FitReport


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("fit")(fit)


def fit(
    params: Annotated[Path, typer.Option(help="The recipe.")] = RECIPE,
    base: Annotated[Path, typer.Option(help="The base model's folder, where it is there.")] = BASE,
    write: Annotated[
        bool, typer.Option("--write", help="Set train.tokens_per_microbatch to the most that fits and is of use.")
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Bytes and seconds as JSON.")] = False,
) -> None:
    """Say what every stage needs of memory, disk and time, and whether this machine has it. Exit code 2: it has not.

    Without a GPU it judges training on the CPU. Example: karma fit
    """
    from karma_electric.fit.machine import this_machine
    from karma_electric.fit.proposal import write_budget
    from karma_electric.fit.report import judge_fit
    from karma_electric.recipe import read_recipe

    report = judge_fit(read_recipe(params), this_machine(Path()), base=base, sets=SETS, cache=DVC_CACHE)
    if json_output:
        print_json(report.as_dict())
    else:
        _print(report)
    proposed = report.proposed_tokens_per_microbatch
    if write and proposed is not None and (report.faults or proposed > report.tokens_per_microbatch):
        write_budget(params, proposed)
        say(f"{params}: train.tokens_per_microbatch is {proposed} now, it was {report.tokens_per_microbatch}")
    if report.faults:
        raise SetupError(f"{params}: does not fit this machine: {'; '.join(report.faults)}")


def _print(report: FitReport) -> None:
    machine = report.machine
    gpus = ", ".join(f"{gpu.name} {gpu.memory_bytes / 1e9:.0f} GB" for gpu in machine.gpus) or "no GPU"
    say(
        f"this machine: {counted(machine.cores, 'core')}, {machine.memory_bytes / 1e9:.1f} GB of memory and "
        f"{machine.disk_bytes / 1e9:.0f} GB of disk free, {gpus}"
    )
    rows = [
        (
            need.stage,
            f"{need.gpu_bytes / 1e9:.1f}",
            f"{need.host_bytes / 1e9:.1f}",
            f"{need.disk_bytes / 1e9:.2f}",
            "" if need.seconds is None else f"{need.seconds:.0f}",
        )
        for need in report.needs
    ]
    print_table(("stage", "GPU, GB", "memory, GB", "disk, GB", "seconds"), rows)
    if not report.sets_are_measured:
        say("training: the longest sequences that the recipe allows; `dvc repro export base` measures the real ones")
    most = report.proposed_tokens_per_microbatch or "none"
    say(
        f"all outputs: {report.disk_bytes / 1e9:.1f} GB of disk; train.tokens_per_microbatch is "
        f"{report.tokens_per_microbatch}, the most that fits and is of use is {most}"
    )
