"""`karma db export`: accepted rows as JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.db.options import Database
from karma_electric.cli.output import say
from karma_electric.cli.paths import DATABASE
from karma_electric.wording import counted


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export")(export)


def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    system_prompt: Annotated[str | None, typer.Option(help="The prompt put before every row, by its id.")] = None,
    category_prompt: Annotated[
        list[str] | None, typer.Option(metavar="CATEGORY:ID", help="Another prompt for a category; may be repeated.")
    ] = None,
    exclude_templates: Annotated[bool, typer.Option("--exclude-templates", help="Without flagged rows.")] = False,
    min_score: Annotated[
        int | None, typer.Option(min=0, max=40, help="The least score; rows without a score are left out, too.")
    ] = None,
    tier: Annotated[list[str] | None, typer.Option(help="Only this tier; may be repeated.")] = None,
    role: Annotated[list[str] | None, typer.Option(help="Only this role; may be repeated.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Only this category; may be repeated.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="Only this language, en or cs; may be repeated.")] = None,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="With the reasoning of rows that have one.")] = False,
    manifest: Annotated[
        Path | None, typer.Option(help="The manifest of row hashes; beside the output without it.")
    ] = None,
    database: Database = DATABASE,
) -> None:
    """Write the accepted examples, ordered by category and id, and a manifest with the hash of every row.

    System turns are taken out; without --system-prompt none is put first. Example: karma db export -o rows.jsonl
    """
    from karma_electric.errors import InputError, shown
    from karma_electric.training_db.export_rows import PromptChoice, export_rows
    from karma_electric.training_db.language import LANGUAGES
    from karma_electric.training_db.selection import Selection

    by_category: dict[str, str] = {}
    for choice in category_prompt or ():
        name, colon, id_ = choice.rpartition(":")
        if not (name and colon and id_) or name in by_category:
            fault = "names a category twice" if name in by_category else "expected CATEGORY:ID"
            raise InputError(f"--category-prompt {shown(choice)}: {fault}")
        by_category[name] = id_
    for value in language or ():
        if value not in LANGUAGES:
            raise InputError(f"--language {shown(value)}: expected one of {', '.join(LANGUAGES)}")
    if output.is_dir():
        raise InputError(f"{output}: a folder; name the file to write")
    written = manifest or output.with_name(f"{output.stem}.manifest.json")
    if written.resolve() == output.resolve():
        raise InputError(f"{output}: output and manifest are one file; choose two names")
    done = export_rows(
        database,
        output,
        manifest=written,
        selection=Selection(
            min_score=min_score,
            exclude_templates=exclude_templates,
            tiers=tier,
            roles=role,
            categories=category,
            languages=language,
        ),
        prompts=PromptChoice(default=system_prompt, by_category=by_category),
        with_reasoning=reasoning,
    )
    say(f"{output}: {counted(done.rows, 'row')}, {done.size_bytes} bytes, sha256 {done.sha256[:12]}; {written}")
