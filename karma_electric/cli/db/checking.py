"""Commands that check the training data: lint, dedupe, lineage, and the dataset card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.db.options import Database, Json
from karma_electric.cli.output import is_for_a_person, print_json, print_table, print_text, say
from karma_electric.cli.paths import BASE, DATA_CARD, DATABASE, PATCHES, PROMPTS, RECIPE, SETS, SUITES
from karma_electric.wording import counted

if TYPE_CHECKING:
    from karma_electric.training_db.lint import Report, TokenLimit

Patches = Annotated[Path, typer.Option(help="The folder with a folder of patches for each version.")]
Recipe = Annotated[Path, typer.Option("--params", help="The recipe.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("lint")(lint)
    app.command("dedupe")(dedupe)
    app.command("lineage")(lineage)
    app.command("card")(card)


def lint(
    rule: Annotated[list[str] | None, typer.Option(help="Only this rule; may be given again.")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Warnings fail, too, and rules that can't be applied.")
    ] = False,
    patches: Patches = PATCHES,
    suites: Annotated[Path, typer.Option(help="The folder of the gate's items.")] = SUITES,
    tokenizer: Annotated[
        Path, typer.Option(help="The base model's folder, or its tokenizer.json; `dvc repro base` makes it.")
    ] = BASE,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The recipe's train.max_length without it.")] = None,
    params: Recipe = RECIPE,
    prompts: Annotated[
        Path, typer.Option(help="The folder with persona.txt and evaluator.txt, which count as tokens.")
    ] = PROMPTS,
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """Look for faults in accepted and pending rows and in patches. Failures end with 1, warnings do not.

    Example: karma db lint
    """
    from karma_electric.training_db.contamination import GateIndex, read_gate_texts
    from karma_electric.training_db.lint import RULES
    from karma_electric.training_db.lint import lint as lint_rows
    from karma_electric.training_db.lint_sources import rows_of_database, rows_of_patches
    from karma_electric.training_db.store import open_to_read

    wanted = tuple(rule or RULES)
    with open_to_read(database) as connection:
        rows = [*rows_of_database(connection, str(database)), *rows_of_patches(patches)]
    limit = None
    if "too-long" in wanted and (tokenizer != BASE or tokenizer.exists()):
        limit = _token_limit(tokenizer, max_tokens, params, prompts)
    gate = GateIndex(read_gate_texts(suites)) if "contamination" in wanted else None
    report = lint_rows(rows, rules=wanted, gate=gate, token_limit=limit)
    if "too-long" in report.unchecked:
        report.unchecked["too-long"] = f"{tokenizer}: missing; `dvc repro base` makes it, or name one with --tokenizer"
    _show_report(report, json_output)
    if report.failures or (strict and (report.findings or report.unchecked)):
        raise typer.Exit(1)


def _token_limit(tokenizer: Path, max_tokens: int | None, params: Path, prompts: Path) -> TokenLimit:
    from karma_electric.prompts import read_prompt
    from karma_electric.training_db.lint import TokenLimit
    from karma_electric.training_db.schema import EVALUATOR_CATEGORY
    from karma_electric.training_db.token_counts import TokenCounter

    if max_tokens is None:
        from karma_electric.parameters import read_section
        from karma_electric.training.params import TrainParams

        max_tokens = read_section(params, "train", TrainParams).max_length
    persona, evaluator = read_prompt(prompts / "persona.txt"), read_prompt(prompts / "evaluator.txt")
    return TokenLimit(
        counter=TokenCounter(tokenizer),
        max_tokens=max_tokens,
        prompt_of=lambda category: evaluator if category == EVALUATOR_CATEGORY else persona,
    )


def _show_report(report: Report, json_output: bool) -> None:
    import dataclasses

    if json_output:
        print_json({"failures": report.failures, **dataclasses.asdict(report)})
        return
    for finding in report.findings:
        style = "red" if finding.severity == "failure" else "yellow"
        print_text(f"{finding.severity} {finding.rule}: {finding}", style=style)
    if report.diversity and is_for_a_person():
        columns = ["category", "words", "distinct 2-grams", "distinct 3-grams"]
        rows = [[name, d.words, f"{d.distinct_2:.1%}", f"{d.distinct_3:.1%}"] for name, d in report.diversity.items()]
        print_table(columns, rows, title="Answers, in stretches of 1,000 words")
    for rule, reason in report.unchecked.items():
        say(f"not checked: {rule}: {reason}")
    warnings = len(report.findings) - report.failures
    say(
        f"{counted(report.rows, 'row')}: {counted(report.failures, 'failure')}, {counted(warnings, 'warning')}; "
        f"templates: {counted(report.template_rows, 'row')}"
    )


def dedupe(
    least: Annotated[
        float, typer.Option("--least", min=0.1, max=1.0, help="The least likeness: shared runs of three words.")
    ] = 0.4,
    status: Annotated[
        list[str] | None, typer.Option(help="Rows of this status; accepted and pending without it.")
    ] = None,
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """List groups of examples that say nearly the same; ends with 1 if there are any. Nothing is changed.

    Example: karma db dedupe
    """
    import dataclasses

    from karma_electric.training_db.near_duplicates import near_duplicates
    from karma_electric.training_db.reading import check_status, texts_of_rows
    from karma_electric.training_db.store import open_to_read

    statuses = [check_status(value) for value in status or ("accepted", "pending")]
    with open_to_read(database) as connection:
        found = near_duplicates(texts_of_rows(connection, statuses), least_likeness=least)
    if json_output:
        print_json([dataclasses.asdict(group) for group in found])
    else:
        print_table(["likeness", "ids"], [[f"{group.likeness:.0%}", " ".join(group.ids)] for group in found])
        say(f"{database}: {counted(len(found), 'group')} of near-duplicates")
    if found:
        raise typer.Exit(1)


def lineage(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of an example or of a patch row.")],
    patches: Patches = PATCHES,
    sets: Annotated[Path, typer.Option(help="The folder with the sets' manifests.")] = SETS,
    database: Database = DATABASE,
    json_output: Json = False,
) -> None:
    """Say which patches touch a row, and which sets and tagged releases hold it.

    Example: karma db lineage boundary-holding-022
    """
    import dataclasses

    from karma_electric.errors import InputError
    from karma_electric.training_db.lineage import trace
    from karma_electric.training_db.store import find_example, open_to_read

    stored, unknown = None, None
    with open_to_read(database) as connection:
        try:
            stored = find_example(connection, id_)
        except InputError as error:
            unknown = error
    found = trace(id_, patches=patches, sets=sets, repository=Path())
    if unknown is not None and found.is_empty:
        raise unknown
    known = None if stored is None else {key: stored[key] for key in ("status", "content_sha256")}
    if json_output:
        print_json({"id": id_, "database": known, **dataclasses.asdict(found)})
        return
    rows = [["database", str(database), f"{known['status']}, content {known['content_sha256'][:12]}"]] if known else []
    rows += [["patch", patch.version, f"{patch.operation} in {patch.where}"] for patch in found.patches]
    rows += [["set", kept.name, f"row {kept.row_sha256[:12]}"] for kept in found.sets]
    rows += [
        ["release", f"{tag.tag} {tag.name}", f"row {tag.row_sha256[:12]}"] for tag in found.releases if tag.row_sha256
    ]
    print_table(["where", "which", "what"], rows)
    lost = [f"{tag.tag} {tag.name}" for tag in found.releases if not tag.is_known]
    if lost:
        say(f"not known: {', '.join(lost)}: the manifest is not in DVC's cache; `dvc pull` or `dvc fetch` brings it")


def card(
    write: Annotated[bool, typer.Option("--write", help="Write the file.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only say whether the file is as it would be written.")
    ] = False,
    file: Annotated[Path, typer.Option(help="The dataset card.")] = DATA_CARD,
    patches: Patches = PATCHES,
    params: Recipe = RECIPE,
    database: Database = DATABASE,
) -> None:
    """Print the dataset card, its numbers counted in the database and the patches; or write it, or check it.

    Example: karma db card --check
    """
    from karma_electric.errors import InputError
    from karma_electric.integrity import write_text
    from karma_electric.parameters import read_section, read_yaml
    from karma_electric.training_db.card.counts import count_for_card
    from karma_electric.training_db.card.render import render_dataset_card
    from karma_electric.training_db.params import ExportParams

    if write and check:
        raise InputError("--write and --check: choose one")
    sets = read_yaml(params).get("sets")
    if not isinstance(sets, dict):
        raise InputError(f"{params}: sets: missing; expected set names with what each is layered on")
    selection = read_section(params, "export", ExportParams).selection()
    text = render_dataset_card(count_for_card(database, patches, sets=sets, selection=selection))
    if write:
        write_text(file, text)
        say(f"{file}: written")
    elif check:
        try:
            current = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: cannot be read ({error}); `karma db card --write` makes it") from error
        if current != text:
            raise InputError(f"{file}: does not say what {database} holds; `karma db card --write` brings it there")
        say(f"{file}: up to date")
    else:
        print(text, end="")
