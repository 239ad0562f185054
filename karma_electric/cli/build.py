"""Commands around a build: check the recipe, pin a folder, compare lock files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.paths import CONSTRAINTS, GRAPH, LOCK, RECIPE
from karma_electric.errors import InputError
from karma_electric.wording import counted

Params = Annotated[Path, typer.Option(help="The recipe.")]
Graph = Annotated[Path, typer.Option(help="The graph of stages.")]
Constraints = Annotated[Path, typer.Option(help="The pinned versions.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("check")(check)
    app.command("hash")(hash_folder)
    app.command("lock")(lock)


def check(
    params: Params = RECIPE,
    graph: Graph = GRAPH,
    constraints: Constraints = CONSTRAINTS,
) -> None:
    """Validate the whole recipe, that its inputs exist, and that the pinned packages are installed.

    Example: karma check
    """
    from karma_electric.base_model.packaged_file import find_file
    from karma_electric.base_model.params import PackagedBase
    from karma_electric.fingerprint.packages import check_installed
    from karma_electric.gate.params import judge_server_url, server_url
    from karma_electric.graph import check_inputs_exist, read_stages
    from karma_electric.parameters import read_yaml
    from karma_electric.recipe import read_recipe

    recipe = read_recipe(params)
    if recipe.gate.engine == "openai":
        server_url(recipe.gate)
    judge_server_url(recipe.gate)
    stages = read_stages(graph, read_yaml(params))
    check_inputs_exist(stages, {source: f"{params}: sets.{name}" for name, source in recipe.sets.items()})
    check_installed(constraints)
    if isinstance(recipe.base, PackagedBase):
        find_file(recipe.base)
    print(f"{params}: sound, {counted(len(stages), 'stage')}", file=sys.stderr)


def hash_folder(
    folder: Annotated[Path, typer.Argument(help="A folder with config, tokenizer and safetensors.")],
) -> None:
    """Print the sha256 that pins a base model's folder in the recipe.

    Example: karma hash ~/models/my-llama
    """
    from karma_electric.base_model.folder import hash_folder as hash_model_folder

    print(hash_model_folder(folder))


def lock(json_output: Annotated[bool, typer.Option("--json", help="The stages as a JSON list.")] = False) -> None:
    """Name the stages whose results differ from the committed dvc.lock: another CPU trains other bits.

    Example: karma lock
    """
    from karma_electric.graph import read_lock, stages_that_differ

    committed = subprocess.run(["git", "show", "HEAD:./dvc.lock"], capture_output=True, text=True, check=False)
    if committed.returncode:
        raise InputError("dvc.lock: not in the last commit, so there is nothing to compare with; commit it")
    try:
        built = LOCK.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"dvc.lock: cannot be read ({error}); build with `dvc repro`") from error
    stages = stages_that_differ(
        read_lock(committed.stdout, "dvc.lock of the last commit"), read_lock(built, "dvc.lock")
    )
    if json_output:
        print(json.dumps(stages))
    elif stages:
        print(f"dvc.lock now describes this machine's build; other results in: {', '.join(stages)}", file=sys.stderr)
