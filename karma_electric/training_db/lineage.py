"""Where a row has gone: which patches touch it, which sets hold it, and which releases were built from those sets.

A release is a git tag whose `dvc.lock` names set manifests. Manifests are in DVC's cache, under the hash that the lock
gives; one that is not there is named, never taken for a set without the row.
"""

from __future__ import annotations

import configparser
import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import parse_json_object, read_json_object
from karma_electric.errors import InputError, SetupError, shown
from karma_electric.graph import read_lock
from karma_electric.integrity import MAX_MANIFEST_BYTES
from karma_electric.training_db.patches import read_patches

MANIFEST_SUFFIX = ".manifest.json"


@dataclass(frozen=True, slots=True)
class PatchLineage:
    """A patch row of the id: its version (the folder's name), what it does, and file:line."""

    version: str
    operation: str
    where: str


@dataclass(frozen=True, slots=True)
class SetLineage:
    """A set that holds the id, with the hash of the row in it."""

    name: str
    row_sha256: str
    where: str


@dataclass(frozen=True, slots=True)
class ReleaseLineage:
    """A tag, and what the manifest of one of its sets says; `is_known` is false when it can't be read here."""

    tag: str
    name: str
    row_sha256: str | None
    is_known: bool


@dataclass(frozen=True, slots=True)
class Lineage:
    patches: list[PatchLineage]
    sets: list[SetLineage]
    releases: list[ReleaseLineage]

    @property
    def is_empty(self) -> bool:
        """Whether no patch, set or release is known to hold the row."""
        return not (self.patches or self.sets or any(release.row_sha256 for release in self.releases))


def trace(id_: str, *, patches: Path, sets: Path, repository: Path) -> Lineage:
    """Where `id_` has gone. `patches` holds a folder a version, `sets` the manifests; both may be missing.

    Raises InputError for a manifest or patch that can't be read, SetupError without git.
    """
    return Lineage(
        patches=list(_patches(id_, patches)),
        sets=list(_sets(id_, sets)),
        releases=list(_releases(id_, repository)),
    )


def _patches(id_: str, folder: Path) -> Iterator[PatchLineage]:
    versions = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    for version in versions:
        for patch in read_patches(version):
            if patch.id == id_:
                yield PatchLineage(version.name, patch.operation, patch.where)


def _sets(id_: str, folder: Path) -> Iterator[SetLineage]:
    for path in sorted(folder.glob(f"*{MANIFEST_SUFFIX}")):
        sha256 = _row_sha256(read_json_object(path, max_bytes=MAX_MANIFEST_BYTES), id_, str(path))
        if sha256 is not None:
            yield SetLineage(path.name.removesuffix(MANIFEST_SUFFIX), sha256, str(path))


def _releases(id_: str, repository: Path) -> Iterator[ReleaseLineage]:
    top = _git(repository, "rev-parse", "--show-toplevel")
    if top is None:
        return
    cache = _cache_folder(Path(top.strip()))
    tags = (_git(repository, "tag", "--list", "--sort=version:refname") or "").splitlines()
    for tag in tags:
        text = _git(repository, "show", f"{tag}:./dvc.lock")
        if text is None:
            continue
        for path, md5 in sorted(_locked_manifests(text, f"dvc.lock of {tag}")):
            name = PurePosixPath(path).name.removesuffix(MANIFEST_SUFFIX)
            data = _cached(cache, md5)
            if data is None:
                yield ReleaseLineage(tag, name, row_sha256=None, is_known=False)
                continue
            where = f"{path} of {tag}"
            sha256 = _row_sha256(parse_json_object(data, where), id_, where)
            if sha256 is not None:
                yield ReleaseLineage(tag, name, sha256, is_known=True)


def _locked_manifests(text: str, where: str) -> Iterator[tuple[str, str]]:
    """(path, md5) of every set manifest that the lock names as an output."""
    for outputs in read_lock(text, where).values():
        yield from ((path, md5) for path, md5 in outputs.items() if path.endswith(MANIFEST_SUFFIX))


def _cached(cache: Path, md5: str) -> bytes | None:
    """The bytes with that hash; None when the cache lacks them, or holds others: DVC does not look."""
    try:
        data = (cache / "files" / "md5" / md5[:2] / md5[2:]).read_bytes()
    except OSError:
        return None
    return data if hashlib.md5(data, usedforsecurity=False).hexdigest() == md5 else None


def _cache_folder(top: Path) -> Path:
    """Where DVC keeps its cache: `cache.dir` of the local or the shared config, or .dvc/cache."""
    for name in ("config.local", "config"):
        config = configparser.ConfigParser(interpolation=None)
        try:
            config.read(top / ".dvc" / name, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise InputError(f"{top / '.dvc' / name}: cannot be read ({error})") from error
        if config.has_option("cache", "dir"):
            return (top / ".dvc" / config.get("cache", "dir").strip("'\"")).resolve()
    return top / ".dvc" / "cache"


def _row_sha256(manifest: dict[str, Any], id_: str, where: str) -> str | None:
    rows = manifest.get("row_sha256")
    if not isinstance(rows, dict):
        raise InputError(f"{where}: row_sha256 is {shown(rows)}, expected the hash of every row; export the set again")
    return rows.get(id_)


def _git(repository: Path, *arguments: str) -> str | None:
    """What git says, or None when it refuses: no repository, no such file at a tag."""
    try:
        done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True, check=False)
    except OSError as error:
        raise SetupError(f"git cannot be run ({error}); install it") from error
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
