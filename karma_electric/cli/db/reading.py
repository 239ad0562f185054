"""Commands that read the training database: counts, search, and rows to look at."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from karma_electric.cli.db.options import Database, Json
from karma_electric.cli.output import is_for_a_person, print_json, print_marked, print_table, print_text, say
from karma_electric.cli.paths import DATABASE
from karma_electric.wording import counted

Status = Annotated[list[str] | None, typer.Option(help="Only rows of this status; may be given again.")]
Limit = Annotated[int, typer.Option(min=1, help="The most rows.")]


class ReviewMode(enum.StrEnum):
    """Which rows to read."""

    RANDOM = "random"
    CATEGORY = "category"
    RECENT = "recent"
    TIER = "tier"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("stats")(stats)
    app.command("categories")(categories)
    app.command("templates")(templates)
    app.command("search")(search)
    app.command("show")(show)
    app.command("category")(category)
    app.command("review")(review)


def stats(database: Database = DATABASE, json_output: Json = False) -> None:
    """Count the examples by status, category, tier, role, language and score.

    Example: karma db stats
    """
    import dataclasses

    from karma_electric.training_db.schema import STATUSES
    from karma_electric.training_db.statistics import count_everything
    from karma_electric.training_db.store import open_to_read

    with open_to_read(database) as connection:
        found = count_everything(connection)
    if json_output:
        print_json(dataclasses.asdict(found))
        return
    flagged = f", {found.with_template_flag} with a template flag" if found.with_template_flag else ""
    print_text(f"{counted(found.examples, 'example')}, {found.accepted} accepted{flagged}", style="bold")
    tables = {
        "status": {status: {status: count} for status, count in found.by_status.items()},
        "category": found.by_category,
        "tier": found.by_tier,
        "role": found.by_role,
        "language": found.by_language,
        "score": found.by_score,
    }
    statuses = [status for status in STATUSES if status in found.by_status]
    if is_for_a_person():
        for name, table in list(tables.items())[1:]:
            rows = [[value, *(counts.get(status, 0) for status in statuses)] for value, counts in table.items()]
            print_table([name, *statuses], rows)
        return
    for name, table in tables.items():
        print_table(
            [], [[name, value, *_pairs(counts)] if name != "status" else [name, *_pairs(counts)]
                 for value, counts in table.items()]
        )  # fmt: skip


def categories(database: Database = DATABASE, json_output: Json = False) -> None:
    """List the categories with their numbers of examples.

    Example: karma db categories
    """
    from karma_electric.training_db.schema import STATUSES
    from karma_electric.training_db.statistics import count_everything
    from karma_electric.training_db.store import open_to_read

    with open_to_read(database) as connection:
        found = count_everything(connection).by_category
    if json_output:
        print_json({name: {**counts, "all": sum(counts.values())} for name, counts in found.items()})
        return
    rows = [
        [name, sum(counts.values()), *(counts.get(status, 0) for status in STATUSES)] for name, counts in found.items()
    ]
    print_table(["category", "all", *STATUSES], rows)


def templates(database: Database = DATABASE, json_output: Json = False) -> None:
    """List the examples that carry a template flag; `karma db lint` looks for others.

    Example: karma db templates
    """
    from karma_electric.training_db.reading import rows_with_template_flag
    from karma_electric.training_db.store import open_to_read

    with open_to_read(database) as connection:
        found = rows_with_template_flag(connection)
    if json_output:
        print_json(found)
        return
    if not found:
        say(f"{database}: no example carries a template flag")
        return
    print_table(["flag", "rows", "ids"], [[flag, len(ids), " ".join(ids)] for flag, ids in found.items()])


def search(
    text: Annotated[list[str], typer.Argument(help='What to look for: words, a "quoted phrase", begin*.')],
    limit: Limit = 20,
    status: Status = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be given again.")] = None,
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """Find examples by their text, the best first. Case and accents don't matter; every word must be there.

    What starts with a dash comes after `--`. Example: karma db search "crisis"
    """
    import dataclasses

    from karma_electric.training_db.reading import check_status, check_value
    from karma_electric.training_db.search import search as search_examples
    from karma_electric.training_db.store import open_to_read

    with open_to_read(database) as connection:
        statuses = [check_status(value) for value in status or ()]
        for name in category or ():
            check_value(connection, "category", name)
        found = search_examples(connection, " ".join(text), limit=limit, statuses=statuses, categories=category or ())
    if json_output:
        print_json([dataclasses.asdict(row) for row in found])
        return
    for row in found:
        print_text(f"{row.id}  {row.category}, {row.status}", style="bold")
        print_marked(row.snippet, row.matches, indent="    ")
    if not found:
        say(f"{database}: nothing found")


def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of an example.")],
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """Show one example: its columns and its turns.

    Example: karma db show crisis-response-004
    """
    from karma_electric.training_db.reading import as_record
    from karma_electric.training_db.store import find_example, open_to_read

    with open_to_read(database) as connection:
        record = as_record(find_example(connection, id_))
    if json_output:
        print_json(record)
    else:
        _print_record(record)


def category(
    name: Annotated[str, typer.Argument(metavar="CATEGORY", help="One of `karma db categories`.")],
    status: Annotated[str | None, typer.Option(help="Only rows of this status.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The most rows; all without it.")] = None,
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """List the examples of a category, each with its beginning.

    Example: karma db category crisis-response
    """
    import dataclasses

    from karma_electric.training_db.reading import check_status, rows_of_category
    from karma_electric.training_db.store import open_to_read

    with open_to_read(database) as connection:
        wanted = check_status(status) if status else None
        found = rows_of_category(connection, name, status=wanted, limit=limit)
    if json_output:
        print_json([dataclasses.asdict(row) for row in found])
        return
    columns = ["id", "status", "tier", "language", "score", "begins"]
    print_table(columns, [list(dataclasses.astuple(row)) for row in found])


def review(
    mode: Annotated[ReviewMode, typer.Argument(help="Which rows to read.")],
    category: Annotated[str | None, typer.Option(help="The category, for `review category`.")] = None,
    tier: Annotated[str | None, typer.Option(help="The tier, for `review tier`; `none` for rows without.")] = None,
    status: Status = None,
    limit: Limit = 5,
    seed: Annotated[int | None, typer.Option(help="For `review random`: the same seed, the same rows.")] = None,
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """Read some examples in full, to judge them with `karma db accept`, `reject` or `edit`.

    Example: karma db review random --seed 1 --limit 2
    """
    from karma_electric.errors import InputError
    from karma_electric.training_db.reading import check_status, rows_to_review
    from karma_electric.training_db.store import open_to_read

    given = {"category": category, "tier": tier, "random": seed}
    for name, value in given.items():
        if value is not None and name != mode.value:
            option = "seed" if name == "random" else name
            raise InputError(f"--{option} is for `review {name}`; leave it out, or choose that mode")
    if mode is ReviewMode.RANDOM and seed is None:
        import secrets

        seed = secrets.randbelow(1_000_000)
        say(f"drawn with --seed {seed}")
    with open_to_read(database) as connection:
        statuses = [check_status(value) for value in status or ()]
        value = category or tier
        rows = rows_to_review(
            connection, mode.value, value=value, statuses=statuses, limit=limit, seed=seed or 0
        )  # fmt: skip
        records = list(rows)
    if json_output:
        print_json(records)
        return
    for record in records:
        _print_record(record)
    if not records:
        say(f"{database}: no such rows")


def _pairs(counts: dict[str, int]) -> list[str]:
    return [f"{name} {count}" for name, count in counts.items()]


def _print_record(record: dict[str, Any]) -> None:
    """The columns that hold something, a line each, and the turns."""
    print_text(record["id"], style="bold")
    for name, value in record.items():
        if name not in ("id", "conversations") and value is not None:
            print_text(f"{name}: {value}", style="dim")
    for message in record["conversations"]:
        print_text(f"\n{message['role']}:", style="cyan")
        print_text(message["content"])
    print()
