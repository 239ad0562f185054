"""The prompts that an axis is measured with: how their files are read, and which of them are used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from karma_electric.axis.params import PromptKind
from karma_electric.canonical import canonical_json, read_json_lines
from karma_electric.conversation import read_examples
from karma_electric.errors import InputError

Split = Literal["fit", "held-out"]
KINDS: tuple[PromptKind, ...] = get_args(PromptKind)
SPLITS: tuple[Split, ...] = get_args(Split)

ENGLISH = "en"
LEAST_CHARACTERS, MOST_CHARACTERS = 20, 2000  # of a training row's first user turn, both exclusive


@dataclass(frozen=True, slots=True)
class Prompt:
    """A user turn, or a system prompt; empty text is no system turn."""

    id: str
    text: str
    where: str  # file and line, for errors
    language: str = ENGLISH


@dataclass(frozen=True, slots=True)
class CalibrationPrompt:
    """A user turn that is answered under the persona's system prompt."""

    id: str
    kind: PromptKind
    split: Split
    text: str
    where: str


def read_contrast_prompts(path: Path) -> list[Prompt]:
    """Rows `{"id","prompt"}`, with a `language` where it is not English. Raises InputError for a row of another form, a
    repeated id, or a repeated prompt."""
    rows = _read_rows(path, ("id", "prompt"), optional=("language",))
    return [Prompt(row["id"], row["prompt"], where, row.get("language", ENGLISH)) for where, row in rows]


def read_generic_prompts(path: Path) -> list[Prompt]:
    """Rows `{"id","prompt"}` of system prompts; an empty prompt is a conversation without a system turn."""
    rows = _read_rows(path, ("id", "prompt"), allow_empty=True)
    return [Prompt(row["id"], row["prompt"], where) for where, row in rows]


def read_calibration_prompts(path: Path) -> list[CalibrationPrompt]:
    """Rows `{"id","kind","split","prompt"}`; every kind must stand in both splits, else InputError."""
    rows = _read_rows(path, ("id", "kind", "split", "prompt"), allowed={"kind": KINDS, "split": SPLITS})
    prompts = [
        CalibrationPrompt(row["id"], cast("PromptKind", row["kind"]), cast("Split", row["split"]), row["prompt"], where)
        for where, row in rows
    ]
    found = {(prompt.kind, prompt.split) for prompt in prompts}
    for kind in KINDS:
        for split in SPLITS:
            if (kind, split) not in found:
                raise InputError(f"{path}: no prompt of kind {kind!r} in the split {split!r}; add at least one")
    return prompts


def read_first_user_turns(training_set: Path) -> list[Prompt]:
    """The first user turns of an exported set with 20 < characters < 2000; a text that stands twice is taken once."""
    prompts: dict[str, Prompt] = {}
    for example in read_examples(training_set):
        text = next(message.content for message in example.conversation if message.role == "user").strip()
        if LEAST_CHARACTERS < len(text) < MOST_CHARACTERS:
            prompts.setdefault(text, Prompt(example.id, text, f"{training_set}: row {example.id!r}"))
    if not prompts:
        raise InputError(
            f"{training_set}: no first user turn has more than {LEAST_CHARACTERS} and fewer than {MOST_CHARACTERS} "
            "characters; use axis.source: prompts"
        )
    return list(prompts.values())


def sample(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """`count` of the prompts, or all where there are fewer, in the order given.

    Those are taken whose sha256 of seed and text is least: the choice depends on neither order nor library version, and
    a prompt more in the file changes at most one of the sample.
    """
    ranked = sorted(prompts, key=lambda prompt: hashlib.sha256(f"{seed}\n{prompt.text}".encode()).digest())
    chosen = {prompt.text for prompt in ranked[:count]}
    return [prompt for prompt in prompts if prompt.text in chosen]


def sample_by_language(prompts: Sequence[Prompt], count: int, seed: int, share: float) -> list[Prompt]:
    """`sample`, with `share` of the `count` in other languages than English; 0 takes English prompts only.

    Raises InputError where there are not enough in other languages, or none in English.
    """
    english = [prompt for prompt in prompts if prompt.language == ENGLISH]
    others = [prompt for prompt in prompts if prompt.language != ENGLISH]
    wanted = round(min(count, len(prompts)) * share)
    if not english or len(others) < wanted:
        raise InputError(
            f"axis.second_language_share {share:g} takes {wanted} prompts that are not English, there are "
            f"{len(others)}, and {len(english)} in English; add rows with a `language`, or lower the share"
        )
    chosen = {prompt.text for prompt in sample(english, count - wanted, seed) + sample(others, wanted, seed)}
    return [prompt for prompt in prompts if prompt.text in chosen]


def texts_sha256(texts: Iterable[str]) -> str:
    """The hash of prompts as they were used, in order."""
    return hashlib.sha256(canonical_json(list(texts)).encode("utf-8")).hexdigest()


def _read_rows(
    path: Path,
    keys: tuple[str, ...],
    *,
    optional: tuple[str, ...] = (),
    allow_empty: bool = False,
    allowed: dict[str, tuple[str, ...]] | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file and line, row)."""
    seen: dict[tuple[str, str], int] = {}
    for number, row in read_json_lines(path):
        where = f"{path}:{number}"
        present = (*keys, *(key for key in optional if key in row))
        _check_row(row, present, where, allow_empty=allow_empty)
        for key, values in (allowed or {}).items():
            if row[key] not in values:
                raise InputError(f"{where}: {key} is {row[key]!r}, expected one of {', '.join(values)}")
        row["prompt"] = row["prompt"].strip()
        for key in ("id", "prompt"):
            if (first := seen.setdefault((key, row[key]), number)) != number:
                raise InputError(f"{where}: this {key} stands already in line {first}; remove one of them")
        yield where, row
    if not seen:
        raise InputError(f"{path}: no rows; expected JSON lines with {', '.join(keys)}")


def _check_row(row: dict[str, Any], keys: tuple[str, ...], where: str, *, allow_empty: bool) -> None:
    if set(row) != set(keys):
        raise InputError(f"{where}: found the keys {', '.join(sorted(row))}; expected exactly {', '.join(keys)}")
    for key in keys:
        value = row[key]
        if not isinstance(value, str) or not (value.strip() or (allow_empty and key == "prompt")):
            raise InputError(f"{where}: {key} is {value!r}, expected text that is not empty")
