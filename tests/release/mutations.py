"""Changes to a finished release, of every kind and in every region of every file, drawn from a fixed seed."""

from __future__ import annotations

import json
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import canonical_json
from karma_electric.gguf_files.reader import read_header
from karma_electric.release.signature_file import SIGNATURE_NAME

MOST_SWAPPED_BYTES = 1_000_000

Region = tuple[str, int, int]  # name, first byte, end


@dataclass(frozen=True)
class Mutation:
    """One file with other bytes: `start` to `end` replaced. `kind` names what is changed, for the count."""

    kind: str
    path: str
    start: int
    end: int
    new: bytes

    def apply(self, data: bytes) -> bytes:
        return data[: self.start] + self.new + data[self.end :]


def replaced(kind: str, path: str, data: bytes) -> Mutation:
    """The whole file with other bytes."""
    return Mutation(kind, path, 0, sys.maxsize, data)


def gguf_regions(path: Path) -> list[Region]:
    """Fixed header, metadata, table of tensors, padding, data of the first and of the last tensor."""
    header, data = read_header(path), path.read_bytes()
    first = header.tensors[0].name.encode()
    table = data.index(struct.pack("<Q", len(first)) + first)
    rows = [8 + len(tensor.name.encode()) + 4 + 8 * len(tensor.shape) + 4 + 8 for tensor in header.tensors]
    regions = [("header", 0, 24), ("metadata", 24, table), ("tensor table", table, table + sum(rows))]
    regions.append(("padding", table + sum(rows), header.data_offset))
    for name, tensor in (("first tensor", header.tensors[0]), ("last tensor", header.tensors[-1])):
        start = header.data_offset + tensor.offset
        regions.append((name, start, start + tensor.size_bytes))
    return [region for region in regions if region[1] < region[2]]


def safetensors_regions(path: Path) -> list[Region]:
    """Length, header and data."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return [("length", 0, 8), ("header", 8, end), ("data", end, len(data))]


def regions_of(path: Path) -> list[Region]:
    if path.suffix == ".gguf":
        return gguf_regions(path)
    if path.suffix == ".safetensors":
        return safetensors_regions(path)
    size = path.stat().st_size
    return [("beginning", 0, min(64, size)), ("whole", 0, size), ("end", max(0, size - 64), size)]


def byte_changes(folder: Path, each: int, draw: random.Random) -> Iterator[Mutation]:
    """In each region of each file, `each` bits flipped, one at a time."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = path.relative_to(folder).as_posix(), path.read_bytes()
        for region, start, end in regions_of(path):
            for _ in range(each):
                place = draw.randrange(start, end)
                flipped = bytes([data[place] ^ 1 << draw.randrange(8)])
                kind = f"{path.suffix.removeprefix('.') or 'text'} {region}"
                yield Mutation(kind, name, place, place + 1, flipped)


def card_numbers(folder: Path, at_most: int | None, draw: random.Random) -> Iterator[Mutation]:
    """Every run of digits on the card, or so many of them, made another number."""
    text = (folder / "README.md").read_text("utf-8")
    numbers = list(re.finditer(r"\d+", text))
    for match in numbers if at_most is None else draw.sample(numbers, at_most):
        digit = str((int(match[0][-1]) + draw.randint(1, 9)) % 10)
        changed = text[: match.end() - 1] + digit + text[match.end() :]
        yield replaced("number on the card", "README.md", changed.encode("utf-8"))


def json_values(folder: Path, at_most: int | None, draw: random.Random) -> Iterator[Mutation]:
    """Every value of manifest.json and gate.json, and of the other JSON files so many, made another."""
    for path in sorted(folder.rglob("*.json")):
        name, value = path.relative_to(folder).as_posix(), json.loads(path.read_bytes())
        places = list(leaves(value))
        every = at_most is None and name in ("manifest.json", "gate.json")
        for place in places if every else draw.sample(places, min(len(places), at_most or 10)):
            changed = json.dumps(with_another(value, place), ensure_ascii=False, indent=2) + "\n"
            yield replaced(f"value of {name}" if every else "value of a JSON file", name, changed.encode("utf-8"))


def evidence_rows(folder: Path, at_most: int | None, draw: random.Random) -> Iterator[Mutation]:
    """A row left out, standing twice, or with another finding, answer or judgement."""
    name = "evidence/gate.jsonl"
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    chosen = range(1, len(lines)) if at_most is None else draw.sample(range(1, len(lines)), at_most)
    for number in chosen:
        row = json.loads(lines[number])
        passed = {**row, "passed": not row["passed"]}
        answers = with_another(row, draw.choice(list(leaves(row["answers"], ("answers",)))))
        replacements = [b"", lines[number] * 2, *((canonical_json(each) + "\n").encode() for each in (passed, answers))]
        for line in replacements:
            yield replaced("row of the evidence", name, b"".join([*lines[:number], line, *lines[number + 1 :]]))


def verdicts(folder: Path) -> Iterator[Mutation]:
    """Another verdict in the gate's file, its report and the card, of the whole and of each check."""
    for name in ("gate.json", "gate.md", "README.md"):
        text = (folder / name).read_text("utf-8")
        for match in re.finditer(r"\b(pass|fail|inconclusive|reported)\b", text):
            for verdict in {"pass", "fail", "inconclusive"} - {match[0]}:
                yield replaced("verdict", name, (text[: match.start()] + verdict + text[match.end() :]).encode("utf-8"))


def whole_files(folder: Path) -> Iterator[Mutation]:
    """Every file emptied, cut short by a byte, a byte longer, and, if it is small, with the bytes of the next file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path, other in zip(paths, [*paths[1:], paths[0]], strict=True):
        name, size = path.relative_to(folder).as_posix(), path.stat().st_size
        yield Mutation("whole file", name, 0, size, b"")
        yield Mutation("whole file", name, size - 1, size, b"")
        yield Mutation("whole file", name, size, size, b"\n")
        if other.stat().st_size < MOST_SWAPPED_BYTES and other.read_bytes() != path.read_bytes():
            yield replaced("whole file", name, other.read_bytes())


def all_mutations(folder: Path, *, each: int, at_most: int | None, seed: int) -> list[Mutation]:
    """Every kind; `each` and `at_most` bound the counts of a kind."""
    draw = random.Random(seed)
    return [
        *byte_changes(folder, each, draw),
        *card_numbers(folder, at_most, draw),
        *json_values(folder, at_most, draw),
        *evidence_rows(folder, at_most, draw),
        *verdicts(folder),
        *whole_files(folder),
    ]


def signature_bytes(folder: Path, step: int) -> Iterator[Mutation]:
    """One bit of every `step`th byte of the signature."""
    data = (folder / SIGNATURE_NAME).read_bytes()
    for place in range(0, len(data), step):
        flipped = bytes([data[place] ^ 1 << place % 8])
        yield Mutation("signature", SIGNATURE_NAME, place, place + 1, flipped)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every text, number, truth or null."""
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*place, key))
    else:
        yield place


def with_another(value: Any, place: tuple[Any, ...]) -> Any:
    """A copy with another value of the same type in one place."""
    if place:
        copy = value.copy()
        copy[place[0]] = with_another(value[place[0]], place[1:])
        return copy
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + "x" if isinstance(value, str) else 1


def survivors(folder: Path, mutations: list[Mutation], check: Callable[[], str]) -> tuple[list[Mutation], list[str]]:
    """Mutations that `check` (the error's words, or nothing) does not see; and what it said of the others."""
    unseen: list[Mutation] = []
    words: list[str] = []
    for mutation in mutations:
        path = folder / mutation.path
        kept = path.read_bytes()
        changed = mutation.apply(kept)
        assert changed != kept, mutation
        path.write_bytes(changed)
        if said := check():
            words.append(said)
        else:
            unseen.append(mutation)
        path.write_bytes(kept)
    return unseen, words
