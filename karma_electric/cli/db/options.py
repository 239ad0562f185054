"""What the commands of `karma db` share."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer

Database = Annotated[Path, typer.Option("--db", help="The database file.")]
Json = Annotated[bool, typer.Option("--json", help="For machines.")]


def now() -> datetime.datetime:
    """The time that history records."""
    return datetime.datetime.now(datetime.UTC)
