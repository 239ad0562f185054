"""A training set: the rows of a database or of an earlier set, with the patches of one version."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

from karma_electric.canonical import readable_json, write_json_lines
from karma_electric.conversation import Conversation, Example, Message, read_examples
from karma_electric.errors import InputError
from karma_electric.integrity import sha256_bytes, write_bytes, write_text
from karma_electric.prompts import read_prompt
from karma_electric.training_db.params import ExportParams
from karma_electric.training_db.patches import Patch, apply_patches, read_patches
from karma_electric.training_db.store import accepted_examples, open_to_read

EVALUATOR_CATEGORY = "reward-evaluation"
EVALUATOR_ROLE = "reward-evaluator"


def export_set(
    source: Path,
    *,
    patches: Path,
    persona_prompt: Path,
    evaluator_prompt: Path,
    output: Path,
    manifest: Path,
    params: ExportParams,
) -> None:
    """Write the set (JSON lines, ordered by category and id) and its manifest of row hashes.

    `source` is a training database or an exported set. System turns are stripped and the prompt of the row's role is
    put first: the evaluator's for ratings, the persona's otherwise. A patch that fits nothing is an InputError.
    """
    prompts = {True: read_prompt(evaluator_prompt), False: read_prompt(persona_prompt)}
    examples = _read_source(source, prompts, params)
    rows = apply_patches(examples, (_prompted(patch, prompts) for patch in read_patches(patches)))
    if not rows:
        raise InputError(f"{source} and {patches}: no rows are left; a set needs at least one accepted example")
    ordered = sorted(rows.values(), key=lambda example: (example.category, example.id))
    data = write_json_lines(example.as_row() for example in ordered)
    write_bytes(output, data)
    write_text(manifest, readable_json(describe_set(ordered, sha256_bytes(data))))


def describe_set(examples: Iterable[Example], file_sha256: str) -> dict[str, object]:
    """The manifest: the file's hash, each row's hash, the hash of all row hashes, and counts by category."""
    hashes: dict[str, str] = {}
    categories: dict[str, int] = {}
    for example in examples:
        hashes[example.id] = example.sha256()
        categories[example.category] = categories.get(example.category, 0) + 1
    root = hashlib.sha256("".join(hashes[key] for key in sorted(hashes)).encode("ascii")).hexdigest()
    return {
        "sha256": file_sha256,
        "rows": len(hashes),
        "root_sha256": root,
        "categories": dict(sorted(categories.items())),
        "row_sha256": dict(sorted(hashes.items())),
    }


def _read_source(source: Path, prompts: dict[bool, str], params: ExportParams) -> dict[str, Example]:
    if source.suffix == ".jsonl":
        return {example.id: example for example in read_examples(source)}
    with open_to_read(source) as connection:
        return {
            row.id: Example(
                id=row.id,
                source=row.source,
                category=row.category,
                conversation=_with_prompt(row.conversation, prompts[row.role == EVALUATOR_ROLE]),
            )
            for row in accepted_examples(connection, params, str(source))
        }


def _prompted(patch: Patch, prompts: dict[bool, str]) -> Patch:
    example = patch.example
    if example is None:
        return patch
    prompt = prompts[example.category == EVALUATOR_CATEGORY]
    prompted = dataclasses.replace(example, conversation=_with_prompt(example.conversation, prompt))
    return dataclasses.replace(patch, example=prompted)


def _with_prompt(conversation: Conversation, prompt: str) -> Conversation:
    turns = tuple(message for message in conversation if message.role != "system")
    return (Message(role="system", content=prompt), *turns)
