"""Commands that read the training database."""

from __future__ import annotations

import typer

from karma_electric.cli.db.options import DEFAULT_DATABASE, Database, Json


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("stats")(stats)


def stats(database: Database = DEFAULT_DATABASE, json_output: Json = False) -> None:
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
