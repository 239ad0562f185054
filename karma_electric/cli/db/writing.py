"""Commands that write to the training database, one transaction each."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.db.options import Database, now
from karma_electric.cli.output import say
from karma_electric.cli.paths import DATABASE
from karma_electric.errors import InputError
from karma_electric.wording import counted

Id = Annotated[str, typer.Argument(help="The id of an example.")]
Ids = Annotated[list[str], typer.Argument(help="The ids of examples, all or none of which are changed.")]


class OnConflict(enum.StrEnum):
    """What to do with a row whose id is there with other content."""

    KEEP = "keep"
    REPLACE = "replace"
    RENAME = "rename"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("import")(import_rows)
    app.command("accept")(accept)
    app.command("reject")(reject)
    app.command("archive")(archive)
    app.command("prompt")(prompt)
    app.command("upgrade")(upgrade)


def import_rows(
    file: Annotated[Path, typer.Argument(help="JSON lines, one example a line, or a whole database.")],
    on_conflict: Annotated[
        OnConflict | None,
        typer.Option(help="For rows that are there with other content."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Write nothing if one row is bad.")] = False,
    source: Annotated[str, typer.Option(help="The source of rows that do not say it.")] = "import",
    category: Annotated[str, typer.Option(help="The category of rows that do not say it.")] = "uncategorised",
    database: Database = DATABASE,
) -> None:
    """Add the rows of a file in one transaction; rows that are there with the same content are counted.

    The project's own form, ShareGPT's, rows with nothing but conversations, or a database with 12, 13 or 15
    columns. Bad rows are listed and left out, and the command ends with 1. Example: karma db import batch.jsonl
    """
    from karma_electric.conversation import parse_text
    from karma_electric.training_db.importing import Defaults, import_examples

    defaults = Defaults(source=parse_text(source, "--source"), category=parse_text(category, "--category"))
    counts = import_examples(
        database,
        file,
        added_at=now(),
        on_conflict=on_conflict.value if on_conflict else None,
        strict=strict,
        defaults=defaults,
        report=say,
    )
    parts = [f"{counts.new} new", f"{counts.known} known"]
    parts += [f"{count} {name}" for name in ("kept", "replaced", "renamed") if (count := getattr(counts, name))]
    say(f"{file}: {', '.join(parts)}")
    if counts.bad:
        raise InputError(f"{file}: left out {counted(counts.bad, 'bad row')}; correct and import the file again")


def accept(ids: Ids, database: Database = DATABASE) -> None:
    """Make examples accepted: the next export takes them.

    Example: karma db accept crisis-response-004
    """
    from karma_electric.training_db import curation
    from karma_electric.training_db.store import open_to_write

    with open_to_write(existing(database)) as connection:
        changed = [(id_, curation.accept(connection, id_, at=now())) for id_ in ids]
    _say_changed(changed, "accepted")


def reject(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of an example.")],
    reason: Annotated[str, typer.Argument(help="Why, for those who come later.")],
    database: Database = DATABASE,
) -> None:
    """Make an example rejected, with a reason.

    Example: karma db reject crisis-response-004 "names a help line that does not exist"
    """
    from karma_electric.training_db import curation
    from karma_electric.training_db.store import open_to_write

    with open_to_write(existing(database)) as connection:
        changed = curation.reject(connection, id_, reason, at=now())
    _say_changed([(id_, changed)], "rejected")


def archive(ids: Ids, database: Database = DATABASE) -> None:
    """Make examples archived: kept, with their history, and out of every export.

    Example: karma db archive ethical-reasoning-017
    """
    from karma_electric.training_db import curation
    from karma_electric.training_db.store import open_to_write

    with open_to_write(existing(database)) as connection:
        changed = [(id_, curation.archive(connection, id_, at=now())) for id_ in ids]
    _say_changed(changed, "archived")


def prompt(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The name that exports use.")],
    file: Annotated[Path, typer.Argument(help="The prompt's text, UTF-8.")],
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    database: Database = DATABASE,
) -> None:
    """Add a system prompt, or replace its text; the earlier one stays in history.

    Example: karma db prompt persona data/prompts/persona.txt
    """
    from karma_electric.prompts import read_prompt
    from karma_electric.training_db.curation import set_system_prompt
    from karma_electric.training_db.store import open_to_write

    content = read_prompt(file)
    with open_to_write(existing(database)) as connection:
        changed = set_system_prompt(connection, id_, content, description, at=now())
    say(f"{id_}: stored" if changed else f"{id_}: is there with this text already")


def upgrade(database: Database = DATABASE) -> None:
    """Bring a database of an earlier version to this one's schema, and fold what a killed program left in its log.

    Example: karma db upgrade
    """
    from karma_electric.training_db import store
    from karma_electric.training_db.schema import SCHEMA_VERSION

    before = store.upgrade(database)
    say(f"{database}: schema {before}" + (f" -> {SCHEMA_VERSION}" if before != SCHEMA_VERSION else ""))


def existing(database: Path) -> Path:
    """The path, if there is a database to change."""
    if not database.is_file():
        raise InputError(f"{database}: missing; expected the training database (git restores it)")
    return database


def _say_changed(changed: list[tuple[str, bool]], status: str) -> None:
    for id_, was_changed in changed:
        say(f"{id_}: {status}" if was_changed else f"{id_}: was {status} already")
