"""A release as it is published: found on disk, compared with its manifest, and copied beside its provenance."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import canonical_json, parse_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.graph import Stage
from karma_electric.integrity import (
    MANIFEST_NAME,
    atomic_directory,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_text,
)
from karma_electric.release.card import PROVENANCE_NAME, YANKED_NAME
from karma_electric.release.manifest import Artifact, read_release_manifest


@dataclass(frozen=True)
class Release:
    """A built release. `files` is path in the published repo -> (what the manifest says, where it lies here)."""

    folder: Path
    identity: dict[str, Any]
    files: dict[str, tuple[Artifact, Path]]
    manifest_sha256: str

    @property
    def name(self) -> str:
        return str(self.identity["name"])

    @property
    def version(self) -> str:
        return str(self.identity["version"])

    def local(self, path: str) -> Path:
        """Where a published file lies. Raises IntegrityError for one that the manifest lacks."""
        if path not in self.files:
            raise IntegrityError(f"{self.folder / MANIFEST_NAME}: names no {path}; run `dvc repro release`")
        return self.files[path][1]


def read_release(folder: Path, stages: Iterable[Stage], *, report: Callable[[str], None]) -> Release:
    """The release in `folder` after every file that it names, there or among the outputs of `stages`, was hashed.

    Raises IntegrityError for the first file that is not as the manifest says, and for a file that it does not name.
    """
    if not (folder / MANIFEST_NAME).is_file():
        raise InputError(f"{folder / MANIFEST_NAME}: missing, so there is nothing to publish; run `dvc repro`")
    identity, artifacts = read_artifacts(folder)
    outputs = {stage.name: stage.outputs for stage in stages}
    files = {a.path: (a, _located(a, folder, outputs.get(a.stage, ()))) for a in artifacts}
    total = sum(artifact.size for artifact in artifacts)
    report(f"{folder}: comparing {len(files)} files, {total / 1e6:.1f} MB, with its manifest")
    for artifact, path in files.values():
        _compare(artifact, path)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST_NAME and name not in files:
            raise IntegrityError(f"{path}: not in {MANIFEST_NAME}; run `dvc repro release`")
    return Release(folder, identity, files, sha256_file(folder / MANIFEST_NAME))


def read_artifacts(folder: Path) -> tuple[dict[str, Any], list[Artifact]]:
    """Identity and files of the release manifest in `folder`, their hashes not yet compared. Raises IntegrityError."""
    manifest = read_release_manifest(folder)
    identity: dict[str, Any] = manifest["identity"]
    if not all(isinstance(identity.get(key), str) for key in ("name", "version")):
        raise IntegrityError(f"{folder / MANIFEST_NAME}: identity has no name and version; build the release again")
    return identity, [Artifact(**entry) for entry in manifest["files"]]


def _located(artifact: Artifact, folder: Path, outputs: tuple[str, ...]) -> Path:
    """Where a file of the release lies: in its folder, or as the output (or inside the output) of its stage."""
    if (inside := folder / artifact.path).is_file():
        return inside
    parts = PurePosixPath(artifact.path).parts
    for output in map(Path, outputs):
        for place, part in enumerate(parts):
            if part == output.name and (found := output.joinpath(*parts[place + 1 :])).is_file():
                return found
    raise IntegrityError(
        f"{artifact.path}: missing, though {folder / MANIFEST_NAME} names it; run `dvc repro {artifact.stage}`"
    )


def _compare(artifact: Artifact, path: Path) -> None:
    size = path.stat().st_size
    digest = sha256_file(path) if size == artifact.size else "of another size"
    if digest != artifact.sha256:
        raise IntegrityError(
            f"{path}: {digest[:16]}… ({size} bytes), the release's {MANIFEST_NAME} says {artifact.sha256[:16]}… "
            f"({artifact.size} bytes); run `dvc repro`"
        )


def stage_release(
    release: Release,
    store: Path,
    *,
    provenance: dict[str, Any],
    yanked: bytes | None,
    signer: str,
    report: Callable[[str], None],
    finish: Callable[[Path], None],
) -> Path:
    """The folder in `store` that holds exactly what is published. One that was made before, from the same, is used
    again, so that a publish that broke off goes on with the same signature.

    `yanked` is the repo's list of withdrawn versions, which goes along from release to release. `signer` says which
    key `finish`, which makes card, manifest and signature, signs with.
    """
    parts = {"manifest": release.manifest_sha256, "provenance": provenance, "yanked": sha256_bytes(yanked or b"")}
    parts["signer"] = signer
    folder = store / sha256_bytes(canonical_json(parts).encode("utf-8"))[:32]
    if folder.is_dir():
        verify_folder(folder)
        return folder
    report(f"copying the release to {folder}")
    with atomic_directory(folder) as staged:
        for name, (_, path) in release.files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged / name)
        shutil.copyfile(release.folder / MANIFEST_NAME, staged / MANIFEST_NAME)
        write_text(staged / PROVENANCE_NAME, readable_json(provenance))
        if yanked is not None:
            write_bytes(staged / YANKED_NAME, yanked)
        finish(staged)
        verify_folder(staged)
    return folder


def verify_folder(folder: Path) -> list[Artifact]:
    """The files of a finished folder after each was compared with its manifest. Raises IntegrityError."""
    _, artifacts = read_artifacts(folder)
    for artifact in artifacts:
        if not (folder / artifact.path).is_file():
            raise IntegrityError(f"{folder / artifact.path}: missing; remove {folder} and publish again")
        _compare(artifact, folder / artifact.path)
    return artifacts


def parse_yanked(data: bytes | None, where: str) -> dict[str, str]:
    """Version -> reason, from the bytes of yanked.json; none yet is an empty list."""
    if data is None:
        return {}
    versions = parse_json_object(data, where)
    if not all(isinstance(reason, str) for reason in versions.values()):
        raise IntegrityError(f"{where}: expected version and reason, as text")
    return versions
