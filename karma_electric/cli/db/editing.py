"""`karma db edit`: a conversation in the person's own editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.db.options import Database, now
from karma_electric.cli.paths import DATABASE
from karma_electric.errors import InputError, KarmaError, SetupError


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("edit")(edit)


def edit(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of an example.")],
    file: Annotated[
        Path | None, typer.Option("--from", help="Take the conversation from this file, without an editor.")
    ] = None,
    database: Database = DATABASE,
) -> None:
    """Edit a conversation as JSON in $VISUAL or $EDITOR. What cannot be stored is kept in a file, and named.

    Example: karma db edit crisis-response-004
    """
    from karma_electric.training_db import curation
    from karma_electric.training_db.store import open_to_read, open_to_write

    expected: str | None = None
    with open_to_read(database) as connection:
        text, row_sha256 = curation.text_to_edit(connection, id_)
    kept = file
    if kept is None:
        expected = row_sha256
        kept = _in_editor(text)
    try:
        edited = _read(kept)
        with open_to_write(database) as connection:
            changed = curation.edit(connection, id_, edited, at=now(), expected_sha256=expected)
    except KarmaError as error:
        if file is None:
            raise InputError(f"{error}; your text is in {kept}: `karma db edit {id_} --from {kept}`") from error
        raise
    if file is None:
        kept.unlink()
    print(f"{id_}: edited" if changed else f"{id_}: unchanged", file=sys.stderr)


def _in_editor(text: str) -> Path:
    """The file that the editor left."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not command:
        raise SetupError("neither VISUAL nor EDITOR is set; set one, or use --from FILE")
    handle, name = tempfile.mkstemp(prefix="karma-edit-", suffix=".json")
    path = Path(name)
    with open(handle, "w", encoding="utf-8") as stream:  # noqa: PTH123
        stream.write(text)
    try:
        code = subprocess.run([*shlex.split(command), name], check=False).returncode
    except (OSError, ValueError) as error:
        path.unlink()
        raise SetupError(f"the editor {command!r} cannot be started ({error}); correct VISUAL or EDITOR") from error
    if code:
        raise InputError(f"the editor {command!r} ended with {code}; nothing was written; its text is in {name}")
    return path


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 ({error})") from error
