"""`karma card`: the model card of a release, made again from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.output import print_json, print_table
from karma_electric.cli.paths import RELEASE

app = typer.Typer(help="The model card.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(help="The folder of a release.")]


@app.command("verify")
def verify(folder: Folder = RELEASE) -> None:
    """Read every number again from the file that it is from, and compare. Exit code 6: one differs.

    Example: karma card verify models/release
    """
    from karma_electric.release.card import verify_card

    card = verify_card(folder)
    print(f"{folder}: {len(card.numbers)} numbers, each as its file says")


@app.command("numbers")
def numbers(
    folder: Folder = RELEASE, json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """List every number of the card with its line, file and key.

    Example: karma card numbers models/release
    """
    from karma_electric.release.card import verify_card

    bound = verify_card(folder).numbers
    if json_output:
        print_json([{"line": b.line, "text": b.text, "file": b.file, "key": b.key} for b in bound])
    else:
        print_table(("line", "number", "file", "key"), [(b.line, b.text, b.file, b.key) for b in bound])
