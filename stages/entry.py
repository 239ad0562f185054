"""How every stage starts and ends: arguments in, one line and an exit code for what a person can mend."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from karma_electric.parameters import Parameters

    P = TypeVar("P", bound=Parameters)


def arguments(description: str | None, *paths: str) -> argparse.ArgumentParser:
    """A parser with --params and a required path for each name in `paths`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--params", type=Path, required=True, help="the recipe")
    for path in paths:
        parser.add_argument(f"--{path}", type=Path, required=True)
    return parser


def run_stage(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], None]) -> None:
    """Check interpreter and recipe, do the work, and end the process. A user's mistake is one line on stderr."""
    parsed = parser.parse_args()
    try:
        metadata.version("karma-electric")
    except metadata.PackageNotFoundError:
        _stop(f"{sys.executable} is not the project's interpreter; run `. .venv/bin/activate` before dvc", 2)
    from karma_electric.errors import KarmaError
    from karma_electric.recipe import read_recipe

    try:
        read_recipe(parsed.params)
        work(parsed)
    except KarmaError as error:
        _stop(str(error), error.exit_code)


def section(parsed: argparse.Namespace, name: str, model: type[P]) -> P:
    """Section `name` of the recipe."""
    from karma_electric.parameters import read_section

    return read_section(parsed.params, name, model)


def report(line: str) -> None:
    """Progress, for people: on stderr."""
    print(line, file=sys.stderr, flush=True)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """A metrics or plot file, in the key order given."""
    from karma_electric.canonical import readable_json
    from karma_electric.integrity import write_text

    write_text(path, readable_json(value))


def _stop(line: str, exit_code: int) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(exit_code)
