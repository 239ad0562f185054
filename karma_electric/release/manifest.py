"""The release's manifest: every artifact by path, size, SHA-256 and the stage that made it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError, shown
from karma_electric.integrity import MANIFEST_NAME, MAX_MANIFEST_BYTES, sha256_file, write_text

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*(/[A-Za-z0-9][A-Za-z0-9._@-]*)*")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file of the release. `path` is where it lies in the published repo."""

    path: str
    size: int
    sha256: str
    stage: str


def require_file(file: Path, *, stage: str) -> Path:
    """`file`, or an InputError that names the stage which makes it."""
    if not file.is_file():
        raise InputError(f"{file}: missing, though the release is made of it; run `dvc repro {stage}`")
    return file


def describe_artifact(file: Path, *, path: str, stage: str) -> Artifact:
    """Raises InputError for a file that is not there."""
    require_file(file, stage=stage)
    return Artifact(path=path, size=file.stat().st_size, sha256=sha256_file(file), stage=stage)


def release_manifest(identity: dict[str, Any], artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """What was built from what, and every artifact in the order of its path; two of one path are a fault of ours."""
    ordered = sorted(artifacts, key=lambda artifact: artifact.path)
    paths = [artifact.path for artifact in ordered]
    if len(set(paths)) != len(paths):
        raise ValueError(f"two artifacts of one path among {paths}")
    return {"identity": identity, "files": [asdict(artifact) for artifact in ordered]}


def write_release_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json in the one spelling that `read_release_manifest` accepts."""
    write_text(folder / MANIFEST_NAME, readable_json(manifest))


def manifest_with(manifest: dict[str, Any], artifacts: Iterable[Artifact]) -> dict[str, Any]:
    """`manifest` with these artifacts added, or put in the place of those of the same path."""
    kept = {entry["path"]: Artifact(**entry) for entry in manifest["files"]}
    kept |= {artifact.path: artifact for artifact in artifacts}
    return release_manifest(manifest["identity"], kept.values())


def read_release_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a release, its form checked but not yet its hashes. Raises IntegrityError."""
    path = folder / MANIFEST_NAME
    try:
        manifest = read_json_object(path, max_bytes=MAX_MANIFEST_BYTES)
    except InputError as error:
        raise IntegrityError(f"{error}; fetch or build the release again") from error
    advice = "fetch or build the release again"
    if set(manifest) != {"identity", "files"} or not isinstance(manifest["identity"], dict):
        raise IntegrityError(f"{path}: not a manifest (identity and files expected); {advice}")
    files = manifest["files"]
    if not isinstance(files, list):
        raise IntegrityError(f"{path}: files is no list; {advice}")
    for entry in files:
        if not _is_entry(entry):
            raise IntegrityError(f"{path}: {shown(entry)} is no path, size, sha256 and stage; {advice}")
    paths = [entry["path"] for entry in files]
    if sorted(set(paths)) != paths:
        raise IntegrityError(f"{path}: its files are not in the order of their paths, each once; {advice}")
    return manifest


def _is_entry(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"path", "size", "sha256", "stage"}:
        return False
    path, size, digest = value["path"], value["size"], value["sha256"]
    return (
        isinstance(path, str)
        and _PATH.fullmatch(path) is not None
        and PurePosixPath(path).as_posix() == path
        and type(size) is int
        and size >= 0
        and isinstance(digest, str)
        and _SHA256.fullmatch(digest) is not None
        and isinstance(value["stage"], str)
    )
