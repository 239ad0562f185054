"""Rows of the database as JSON lines, for other tools: chosen rows, with the prompts that the database holds."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from karma_electric.canonical import canonical_json
from karma_electric.conversation import parse_conversation
from karma_electric.errors import InputError, shown
from karma_electric.integrity import atomic_file
from karma_electric.training_db.export import with_prompt
from karma_electric.training_db.hashes import checked_content
from karma_electric.training_db.reading import check_value
from karma_electric.training_db.selection import Selection
from karma_electric.training_db.set_manifest import SetManifest
from karma_electric.training_db.store import open_to_read

_ROWS_AT_ONCE = 100
_ROLES = re.compile(r'","role":"(\w+)"}')  # stands at the end of a message only: a quote inside its text is escaped


@dataclass(frozen=True, slots=True)
class PromptChoice:
    """Ids of `system_prompts`: one for every category, and one for the rest. Without one a row gets no system turn."""

    default: str | None = None
    by_category: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    rows: int
    size_bytes: int
    sha256: str


def export_rows(
    database: Path,
    output: Path,
    *,
    manifest: Path,
    selection: Selection,
    prompts: PromptChoice,
    with_reasoning: bool = False,
) -> Exported:
    """Write the accepted rows that `selection` lets through, and the manifest of their hashes.

    One JSON object a line (id, source, category, conversations; with `with_reasoning` also reasoning, where a row has
    one), ordered by category and id. System turns are stripped and the chosen prompt is put first. The same rows give
    the same bytes; memory does not grow with the rows. InputError for an unknown prompt, category, tier or role, and
    when no row is left; the output stays as it was.
    """
    if output.resolve() == database.resolve():
        raise InputError(f"{output}: is the database; choose another name for the export")
    hashed = hashlib.sha256()
    size_bytes = rows = 0
    with open_to_read(database) as connection, SetManifest() as described, atomic_file(output) as temporary:
        texts = _prompt_texts(connection, prompts)
        _check_names(connection, selection, prompts)
        lines = _lines(connection, selection, texts, with_reasoning, str(database))
        with temporary.open("wb") as stream:
            while batch := list(itertools.islice(lines, _ROWS_AT_ONCE)):
                data = b"\n".join([line for *_, line in batch]) + b"\n"
                hashed.update(data)
                size_bytes += stream.write(data)
                rows += len(batch)
                for id_, category, sha256, _ in batch:
                    described.add(id_, category, sha256)
        if not rows:
            unscored = "" if selection.min_score is None else " (a row without a score reaches no least score)"
            raise InputError(f"{database}: no accepted row fits the filters{unscored}; leave one out")
        described.write(manifest, file_sha256=hashed.hexdigest())
    return Exported(rows=rows, size_bytes=size_bytes, sha256=hashed.hexdigest())


def _lines(
    connection: sqlite3.Connection,
    selection: Selection,
    prompts: Mapping[str | None, str],
    with_reasoning: bool,
    where: str,
) -> Iterator[tuple[str, str, str, bytes]]:
    """(id, category, SHA-256 of the line, line without its end) of each row.

    A line is canonical JSON put together around the stored text: to write it all anew would take most of the time. Each
    row is checked against its hash, and its form again; where nothing is put in or taken out, what was hashed is the
    line.
    """
    condition, values = selection.in_sql()
    encode = json.encoder.encode_basestring
    turns = {key: canonical_json({"content": text, "role": "system"}) + "," for key, text in prompts.items()}
    cursor = connection.cursor()
    cursor.row_factory = None  # tuples: names are looked up one by one
    # By this index rows come in order; by the one that begins with the status SQLite would sort them, texts and all.
    cursor.execute(
        "SELECT id, source, category, conversations, content_sha256, reasoning "  # noqa: S608 - names of ours
        f"FROM examples INDEXED BY examples_by_category WHERE {condition} ORDER BY category, id",
        values,
    )
    for id_, source, category, stored, sha256, reason in cursor:
        line = checked_content(id_, source, category, stored, sha256, where)
        spoken = _without_system_turns(id_, stored, where)
        prompt = turns.get(category, turns.get(None, ""))
        reasoning = f',"reasoning":{encode(reason)}' if with_reasoning and reason else ""
        if prompt or reasoning or spoken is not stored:
            line = (
                f'{{"category":{encode(category)},"conversations":[{prompt}{spoken[1:]},"id":{encode(id_)}'
                f'{reasoning},"source":{encode(source)}}}'
            ).encode()
            sha256 = hashlib.sha256(line).hexdigest()
        yield id_, category, sha256, line


def _without_system_turns(id_: str, stored: str, where: str) -> str:
    """A conversation in canonical JSON; `stored` itself when it has no system turn. InputError for what is none."""
    roles = _ROLES.findall(stored)
    if roles and stored.startswith('[{"content":') and roles == ["user", "assistant"] * (len(roles) // 2):
        return stored
    conversation = parse_conversation(json.loads(stored), f"{where}: example {shown(id_)}")
    return canonical_json([message.as_dict() for message in with_prompt(conversation, None)])


def _prompt_texts(connection: sqlite3.Connection, prompts: PromptChoice) -> dict[str | None, str]:
    """Category -> the text of its prompt; the default under None."""
    query = "SELECT id, content FROM system_prompts ORDER BY id"
    known: dict[str, str] = {row["id"]: row["content"] for row in connection.execute(query)}
    chosen: dict[str | None, str] = {} if prompts.default is None else {None: prompts.default}
    chosen.update(prompts.by_category)
    for id_ in chosen.values():
        if id_ not in known:
            near = difflib.get_close_matches(id_, known, n=3, cutoff=0.4) or list(known)[:10]
            there_are = f"there are {', '.join(near)}" if near else "it holds none; `karma db prompt` adds one"
            raise InputError(f"no system prompt {shown(id_)} in the database; {there_are}")
    return {category: known[id_] for category, id_ in chosen.items()}


def _check_names(connection: sqlite3.Connection, selection: Selection, prompts: PromptChoice) -> None:
    """A misspelt name would leave rows out, or a prompt unused, in silence."""
    for category in sorted({*(selection.categories or ()), *prompts.by_category}):
        check_value(connection, "category", category)
    for tier in sorted(selection.tiers or ()):
        check_value(connection, "tier", tier)
    for role in sorted(selection.roles or ()):
        check_value(connection, "role", role)
