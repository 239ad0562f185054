"""The numbers of the dataset card, counted in the database and the patches."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from karma_electric.errors import InputError
from karma_electric.training_db.patches import Patch, read_patches
from karma_electric.training_db.selection import Selection
from karma_electric.training_db.statistics import Statistics, count_everything
from karma_electric.training_db.store import open_to_read


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of accepted rows: how many have more than one answer, and the words of all answers of a row."""

    multi_turn: int
    shortest_words: int
    median_words: int
    longest_words: int


@dataclass(frozen=True, slots=True)
class Layer:
    """The patches of one version."""

    version: str
    add: int
    replace: int
    retire: int
    files: dict[str, int]


@dataclass(frozen=True, slots=True)
class CardCounts:
    """`sets` is set name -> number of rows, in the order of the recipe."""

    statistics: Statistics
    by_source: dict[str, int]
    lengths: Lengths
    layers: list[Layer]
    sets: dict[str, int]
    prompts: dict[str, str | None]


def count_for_card(database: Path, patches: Path, *, sets: Mapping[str, str], selection: Selection) -> CardCounts:
    """`sets` is the recipe's (name -> the database or set below it), `selection` what a set takes of the database.

    Raises InputError for a database or patch that can't be read, and for a set that is layered on none of the others.
    """
    layers = {name: list(read_patches(patches / name)) for name in sets}
    with open_to_read(database) as connection:
        condition, values = selection.in_sql()
        query = f"SELECT id FROM examples WHERE {condition}"  # noqa: S608 - names of ours; values are bound
        exported = frozenset(row["id"] for row in connection.execute(query, values))
        return CardCounts(
            statistics=count_everything(connection),
            by_source=_by_source(connection),
            lengths=_lengths(connection),
            layers=[_layer(name, found) for name, found in layers.items()],
            sets={name: len(_ids(name, sets, layers, exported)) for name in sets},
            prompts={
                row["id"]: row["description"]
                for row in connection.execute("SELECT id, description FROM system_prompts ORDER BY id")
            },
        )


def _by_source(connection: sqlite3.Connection) -> dict[str, int]:
    query = "SELECT source, count(*) FROM examples WHERE status = 'accepted' GROUP BY source ORDER BY source"
    return {source: count for source, count in connection.execute(query)}  # noqa: C416 - rows are no pairs


def _lengths(connection: sqlite3.Connection) -> Lengths:
    words: list[int] = []
    multi_turn = 0
    for row in connection.execute("SELECT conversations FROM examples WHERE status = 'accepted'"):
        answers = [turn["content"] for turn in json.loads(row["conversations"]) if turn["role"] == "assistant"]
        multi_turn += len(answers) > 1
        words.append(sum(len(answer.split()) for answer in answers))
    words.sort()
    if not words:
        return Lengths(0, 0, 0, 0)
    return Lengths(multi_turn, words[0], words[len(words) // 2], words[-1])


def _layer(version: str, patches: list[Patch]) -> Layer:
    operations = Counter(patch.operation for patch in patches)
    files = Counter(Path(patch.where.rpartition(":")[0]).stem for patch in patches)
    return Layer(version, operations["add"], operations["replace"], operations["retire"], dict(sorted(files.items())))


def _ids(
    name: str, sets: Mapping[str, str], layers: Mapping[str, list[Patch]], exported: frozenset[str]
) -> frozenset[str]:
    source = PurePosixPath(sets[name])
    if source.suffix == ".db":
        below = exported
    elif source.stem in sets and source.stem != name:
        below = _ids(source.stem, sets, layers, exported)
    else:
        raise InputError(f"the set {name!r} is layered on {sets[name]!r}, expected a .db file or another set")
    retired = {patch.id for patch in layers[name] if patch.operation == "retire"}
    return (below | {patch.id for patch in layers[name]}) - retired
