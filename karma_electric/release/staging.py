"""A release as it is published: found on disk, compared with its manifest, and copied beside its provenance."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import canonical_json, readable_json
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
from karma_electric.release.card import CARD_NAME, PROVENANCE_NAME, YANKED_NAME, model_card
from karma_electric.release.finishing import CardText, finish_release
from karma_electric.release.manifest import (
    Artifact,
    read_release_manifest,
    release_manifest,
    write_release_manifest,
)
from karma_electric.release.signature import Signer, public_key_of


@dataclass(frozen=True)
class Publication:
    """What one repo is to hold. `files` is path in the repo -> (what the manifest says, where it lies here).

    `card` makes README.md from a folder that holds these files and what publishing adds, and their manifest.
    """

    identity: dict[str, Any]
    files: dict[str, tuple[Artifact, Path]]
    card: CardText

    @property
    def name(self) -> str:
        return str(self.identity["name"])

    @property
    def version(self) -> str:
        return str(self.identity["version"])

    def manifest(self) -> dict[str, Any]:
        """The manifest of `files`, before publishing adds to them."""
        return release_manifest(self.identity, (artifact for artifact, _ in self.files.values()))


@dataclass(frozen=True)
class Release(Publication):
    """A built release: `folder` holds its manifest and its small files."""

    folder: Path

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
    return Release(identity, files, model_card, folder)


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


def stage(
    publication: Publication,
    store: Path,
    *,
    provenance: dict[str, Any],
    yanked: bytes | None,
    key: Signer | None,
    report: Callable[[str], None],
) -> Path:
    """The folder in `store` that holds exactly what is published: signed with `key`, where there is one. A folder that
    was made before, from the same, is used again, so that a publish that broke off goes on with the same signature.

    `yanked` is the repo's list of withdrawn versions, which goes along from release to release.
    """
    manifest = publication.manifest()
    parts = {
        "manifest": manifest,
        "card": rendered_card(publication, provenance=provenance, yanked=yanked),
        "provenance": provenance,
        "yanked": sha256_bytes(yanked or b""),
        "signer": sha256_bytes(public_key_of(key)) if isinstance(key, Path) else "keyless" if key else "",
    }
    folder = store / sha256_bytes(canonical_json(parts).encode("utf-8"))[:32]
    if folder.is_dir():
        verify_folder(folder)
        return folder
    report(f"copying {publication.name} to {folder}")
    with atomic_directory(folder) as staged:
        for name, (_, path) in publication.files.items():
            (staged / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged / name)
        write_release_manifest(staged, manifest)
        _add(staged, provenance, yanked)
        finish_release(staged, private_key=key, card=publication.card)
        _check_copies(publication, staged)
    return folder


def _check_copies(publication: Publication, folder: Path) -> None:
    """Raises IntegrityError when what was just copied and hashed is not what was checked before."""
    copied = {artifact.path: artifact.sha256 for artifact in read_artifacts(folder)[1]}
    for name, (artifact, path) in publication.files.items():
        if name != CARD_NAME and copied[name] != artifact.sha256:
            raise IntegrityError(
                f"{path}: sha256 is {copied[name][:12]}… in the copy, and was {artifact.sha256[:12]}… when it was "
                "checked; let nothing write to it, run `dvc repro`, and publish again"
            )


def rendered_card(publication: Publication, *, provenance: dict[str, Any], yanked: bytes | None) -> str:
    """The card that would be published, without copying or hashing what is large."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (_, path) in publication.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(path.resolve())
        _add(folder, provenance, yanked)
        return publication.card(folder, publication.manifest())


def _add(folder: Path, provenance: dict[str, Any], yanked: bytes | None) -> None:
    """What publishing adds to the files of a release."""
    write_text(folder / PROVENANCE_NAME, readable_json(provenance))
    if yanked is not None:
        write_bytes(folder / YANKED_NAME, yanked)


def verify_folder(folder: Path) -> list[Artifact]:
    """The files of a finished folder after each was compared with its manifest. Raises IntegrityError."""
    _, artifacts = read_artifacts(folder)
    for artifact in artifacts:
        if not (folder / artifact.path).is_file():
            raise IntegrityError(f"{folder / artifact.path}: missing; remove {folder} and publish again")
        _compare(artifact, folder / artifact.path)
    return artifacts
