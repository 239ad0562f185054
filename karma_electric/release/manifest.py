"""The release's manifest: every artifact by path, size, SHA-256 and the stage that made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from karma_electric.errors import InputError
from karma_electric.integrity import sha256_file


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
