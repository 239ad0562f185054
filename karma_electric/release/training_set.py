"""A training set of a release as a dataset of the hub: its rows, their hashes, a card, and where it is from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import canonical_json, read_json_lines, read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.graph import Stage
from karma_electric.integrity import MANIFEST_NAME, MAX_MANIFEST_BYTES
from karma_electric.release.card import added_facts, render_facts
from karma_electric.release.card_numbers import Fact
from karma_electric.release.manifest import describe_artifact
from karma_electric.release.staging import Publication, Release
from karma_electric.training_db.card.render import size_category
from karma_electric.training_db.language import language_of

TEMPLATE = "dataset-card.md.jinja"
LICENSE = "mit"  # of the data, as its own card says; its text goes along


def training_sets(release: Release, stages: Iterable[Stage], *, license_text: Path) -> list[Publication]:
    """Every training set of `release`, in the order of its recipe, found among the outputs of `stages`.

    Raises IntegrityError for a set that is missing, or is not the one that the release's manifest of its rows names.
    """
    if not license_text.is_file():
        raise InputError(f"{license_text}: missing, though every dataset brings its licence; restore it")
    outputs = {stage.name: stage.outputs for stage in stages}
    manifests = {name: _manifest_of(release, name) for name in release.identity["training_sets"]}
    sources = read_json_object(release.local("reproduce.json"))["recipe"]["sets"]
    found = []
    for name, manifest in manifests.items():
        below = PurePosixPath(str(sources.get(name)))
        found.append(
            _training_set(
                release,
                name,
                manifest,
                below=(below.stem, manifests[below.stem]) if below.stem in manifests else None,
                rows=_rows_of(release, name, outputs),
                license_text=license_text,
            )
        )
    return found


def dataset_card(folder: Path, manifest: dict[str, Any]) -> str:
    """The text of the card of the training set in `folder`, every number of it bound to a file."""
    name = f"{manifest['identity']['set']}.manifest.json"
    rows = {key: value for key, value in _read(folder / name).items() if key != "row_sha256"}
    facts = {"identity": Fact(manifest["identity"], MANIFEST_NAME, "identity"), "rows": Fact(rows, name)}
    return render_facts(TEMPLATE, facts | added_facts(folder)).text


def _training_set(
    release: Release,
    name: str,
    manifest: dict[str, Any],
    *,
    below: tuple[str, dict[str, Any]] | None,
    rows: Path,
    license_text: Path,
) -> Publication:
    stage = f"export@{name}"
    files = {
        f"{name}.jsonl": rows,
        f"{name}.manifest.json": release.local(f"sets/{name}.manifest.json"),
        "LICENSE": license_text,
    }
    described = {path: (describe_artifact(local, path=path, stage=stage), local) for path, local in files.items()}
    if described[f"{name}.jsonl"][0].sha256 != manifest["sha256"]:
        raise IntegrityError(
            f"{rows}: not the set that the release names (sha256 {manifest['sha256'][:12]}…); run `dvc repro`"
        )
    identity = {
        "name": f"{release.name}-{name}",
        "version": release.version,
        "model": release.name,
        "set": name,
        "date": release.identity["date"],
        "license": LICENSE,
        "size_category": size_category(manifest["rows"]),
        "languages": _languages(rows),
        "below": None
        if below is None
        else {"set": below[0], **_changes(below[1]["row_sha256"], manifest["row_sha256"])},
        "is_in_weights": name not in release.identity["sets_in_no_weights"],
    }
    return Publication(identity, described, dataset_card)


def _manifest_of(release: Release, name: str) -> dict[str, Any]:
    return _read(release.local(f"sets/{name}.manifest.json"))


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=MAX_MANIFEST_BYTES)


def _rows_of(release: Release, name: str, outputs: Mapping[str, tuple[str, ...]]) -> Path:
    stage = release.files[f"sets/{name}.manifest.json"][0].stage
    for output in map(Path, outputs.get(stage, ())):
        if output.name == f"{name}.jsonl" and output.is_file():
            return output
    raise IntegrityError(f"{name}.jsonl: missing, though the release names its rows; run `dvc repro {stage}`")


def _changes(below: Mapping[str, str], here: Mapping[str, str]) -> dict[str, int]:
    """How many rows were added to, replaced in and retired from the set below, by the hashes of the rows."""
    return {
        "added": len(here.keys() - below.keys()),
        "replaced": sum(below[row] != here[row] for row in here.keys() & below.keys()),
        "retired": len(below.keys() - here.keys()),
    }


def _languages(rows: Path) -> dict[str, int]:
    """Language -> number of rows, told by the turns; the system prompt is no part of what a row says."""
    counted: Counter[str] = Counter()
    for _, row in read_json_lines(rows):
        turns = [turn for turn in row["conversations"] if turn["role"] != "system"]
        counted[language_of(canonical_json(turns))] += 1
    return dict(sorted(counted.items()))
