"""A training set for the graph: the rows of a database or of an earlier set, with the patches of one version."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from karma_electric.canonical import write_json_lines
from karma_electric.conversation import Conversation, Example, Message, read_numbered_examples
from karma_electric.errors import InputError
from karma_electric.integrity import sha256_bytes, write_bytes
from karma_electric.prompts import read_prompt
from karma_electric.training_db.contamination import GateIndex, read_gate_texts
from karma_electric.training_db.params import ExportParams
from karma_electric.training_db.patches import Patch, apply_patches, read_patches
from karma_electric.training_db.schema import EVALUATOR_CATEGORY, EVALUATOR_ROLE
from karma_electric.training_db.set_manifest import SetManifest
from karma_electric.training_db.store import accepted_examples, open_to_read
from karma_electric.training_db.texts import turns

MOST_HITS_SHOWN = 3


@dataclasses.dataclass(frozen=True, slots=True)
class _SourceRow:
    """A row below the patches, and where it stands: the database, or a set's line."""

    example: Example
    where: str


def export_set(
    source: Path,
    *,
    patches: Path,
    suites: Path,
    persona_prompt: Path,
    evaluator_prompt: Path,
    output: Path,
    manifest: Path,
    params: ExportParams,
) -> None:
    """Write the set (JSON lines, ordered by category and id) and its manifest of row hashes.

    `source` is a training database or an exported set. System turns are stripped and the prompt of the row's role is
    put first: the evaluator's for ratings, the persona's otherwise. InputError for a patch that fits nothing, and for
    a row that holds a gate item of `suites`, or nearly.
    """
    prompts = {True: read_prompt(evaluator_prompt), False: read_prompt(persona_prompt)}
    gate = GateIndex(read_gate_texts(suites))
    below = _read_source(source, prompts, params)
    layer = [_prompted(patch, prompts) for patch in read_patches(patches)]
    rows = apply_patches({id_: row.example for id_, row in below.items()}, iter(layer))
    if not rows:
        raise InputError(f"{source} and {patches}: no rows are left; a set needs at least one accepted example")
    ordered = sorted(rows.values(), key=lambda example: (example.category, example.id))
    places = {id_: row.where for id_, row in below.items()} | {patch.id: patch.where for patch in layer}
    check_contamination(ordered, places, gate)
    data = write_json_lines(example.as_row() for example in ordered)
    write_bytes(output, data)
    with SetManifest() as described:
        for example in ordered:
            described.add(example.id, example.category, example.sha256())
        described.write(manifest, file_sha256=sha256_bytes(data))


def check_contamination(examples: list[Example], places: dict[str, str], gate: GateIndex) -> None:
    """Raise InputError for gate items in `examples`, naming item and row with file and line."""
    hits = [
        hit
        for example in examples
        for hit in gate.hits(turns(example.conversation), row=example.id, where=places[example.id])
    ]
    if hits:
        more = f"; and {len(hits) - MOST_HITS_SHOWN} more" if len(hits) > MOST_HITS_SHOWN else ""
        listed = "; ".join(map(str, hits[:MOST_HITS_SHOWN]))
        raise InputError(f"{listed}{more}. A release must not be tested with what it was taught: change row or item")


def _read_source(source: Path, prompts: dict[bool, str], params: ExportParams) -> dict[str, _SourceRow]:
    if source.suffix == ".jsonl":
        return {
            example.id: _SourceRow(example, f"{source}:{number}") for number, example in read_numbered_examples(source)
        }
    with open_to_read(source) as connection:
        return {
            row.id: _SourceRow(
                Example(
                    id=row.id,
                    source=row.source,
                    category=row.category,
                    conversation=with_prompt(row.conversation, prompts[row.role == EVALUATOR_ROLE]),
                ),
                str(source),
            )
            for row in accepted_examples(connection, params.selection(), str(source))
        }


def _prompted(patch: Patch, prompts: dict[bool, str]) -> Patch:
    example = patch.example
    if example is None:
        return patch
    prompt = prompts[example.category == EVALUATOR_CATEGORY]
    prompted = dataclasses.replace(example, conversation=with_prompt(example.conversation, prompt))
    return dataclasses.replace(patch, example=prompted)


def with_prompt(conversation: Conversation, prompt: str | None) -> Conversation:
    """The conversation without its system turns, and with `prompt`, if there is one, as the first turn."""
    spoken = tuple(message for message in conversation if message.role != "system")
    return spoken if prompt is None else (Message(role="system", content=prompt), *spoken)
