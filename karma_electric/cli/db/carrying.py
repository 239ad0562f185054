"""Commands that carry the training database: dump, restore; and history, which says how it came to be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.db.options import Database, Json
from karma_electric.cli.paths import DATABASE
from karma_electric.errors import InputError
from karma_electric.wording import counted


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("dump")(dump)
    app.command("restore")(restore)
    app.command("history")(history)


def dump(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file; else standard output.")] = None,
    database: Database = DATABASE,
) -> None:
    """Write every row of every table as text, one JSON line a row; `karma db restore` makes a database of it.

    Example: karma db dump -o training.jsonl
    """
    from karma_electric.training_db.dump import dump_lines, write_dump

    if output is not None:
        write_dump(database, output)
        return
    for line in dump_lines(database):
        sys.stdout.buffer.write(line.encode("utf-8"))
    sys.stdout.buffer.flush()


def restore(
    file: Annotated[Path, typer.Argument(help="A file of `karma db dump`.")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the database that is there.")] = False,
    database: Database = DATABASE,
) -> None:
    """Make a database of a dump, and check every row of it against its hashes and history.

    Example: karma db restore training.jsonl --db restored.db
    """
    from karma_electric.training_db.dump import restore as restore_database

    count = restore_database(file, database, replace=replace)
    print(f"{database}: {counted(count, 'example')} restored", file=sys.stderr)


def history(
    id_: Annotated[str | None, typer.Argument(metavar="[ID]", help="An example; without it, all of them.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many rows of history, the latest first.")] = 20,
    number: Annotated[
        int | None, typer.Option("--at", min=1, help="Show the whole example as this row of history left it.")
    ] = None,
    json_output: Json = False,
    database: Database = DATABASE,
) -> None:
    """Say what was done, when and by which command; or show an example as it was.

    Example: karma db history crisis-response-004
    """
    import dataclasses

    from karma_electric.training_db.history import entries, known_to_history, state_at
    from karma_electric.training_db.store import open_to_read

    if number is not None and id_ is None:
        raise InputError("--at shows one example as it was; name its ID, too")
    with open_to_read(database) as connection:
        if id_ is not None:
            known_to_history(connection, id_)
        if id_ is not None and number is not None:
            print(json.dumps(state_at(connection, id_, number), ensure_ascii=False, indent=2))
            return
        found = list(entries(connection, id_, limit=limit))
    if json_output:
        print(json.dumps([dataclasses.asdict(entry) for entry in found], ensure_ascii=False))
        return
    for entry in found:
        changes = ", ".join(entry.changed) or ("made" if entry.patch is None else "")
        print(f"{entry.number:>6}  {entry.at}  {entry.command:<8} {entry.id}  {changes}  {entry.detail or ''}".rstrip())
