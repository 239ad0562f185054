"""`karma db`: the training database."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The training database.", no_args_is_help=True)

Database = Annotated[Path, typer.Option("--db", help="The database file.")]


@app.command("import")
def import_rows(
    file: Annotated[Path, typer.Argument(help="JSON lines, one example a line.")],
    database: Database = Path("data/training.db"),
) -> None:
    """Add the rows of a file, all or none; rows that are there already with the same content are counted.

    Example: karma db import batch.jsonl
    """
    import datetime

    from karma_electric.training_db.importing import import_examples

    counts = import_examples(database, file, added_at=datetime.datetime.now(datetime.UTC))
    print(f"{file}: {counts.new} new, {counts.known} known", file=sys.stderr)


@app.command("stats")
def stats(
    database: Database = Path("data/training.db"),
    json_output: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Count the examples by status and category.

    Example: karma db stats
    """
    import json

    from karma_electric.training_db.store import count_examples, open_to_read

    with open_to_read(database) as connection:
        counts = count_examples(connection)
    if json_output:
        print(json.dumps(counts, ensure_ascii=False))
        return
    for category, by_status in counts.items():
        print(f"{category:<28}" + "  ".join(f"{status} {count}" for status, count in by_status.items()))
