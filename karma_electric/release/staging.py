"""A release as it is published: found on disk, compared with its manifest, copied with its provenance, finished."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.canonical import canonical_json, parse_json_object, read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError
from karma_electric.graph import Stage
from karma_electric.integrity import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    atomic_directory,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_text,
)
from karma_electric.release.manifest import Artifact, describe_artifact, release_manifest

CARD_NAME = "README.md"
PROVENANCE_NAME = "provenance.json"
YANKED_NAME = "yanked.json"
PUBLISH_STAGE = "publish"  # the `stage` of what publishing adds

_ENTRY = {"path": str, "size": int, "sha256": str, "stage": str}


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
    path = folder / MANIFEST_NAME
    try:
        manifest = read_json_object(path, max_bytes=MAX_MANIFEST_BYTES)
    except InputError as error:
        raise IntegrityError(f"{error}; build or fetch the release again") from error
    return parse_artifacts(manifest, str(path))


def parse_artifacts(manifest: dict[str, Any], where: str) -> tuple[dict[str, Any], list[Artifact]]:
    """The same for a manifest that was read; `where` starts every error."""
    identity, files = manifest.get("identity"), manifest.get("files")
    if not isinstance(identity, dict) or not {"name", "version"} <= identity.keys() or not isinstance(files, list):
        raise IntegrityError(f"{where}: no manifest of a release; build or fetch it again")
    for entry in files:
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _ENTRY:
            raise IntegrityError(f"{where}: files holds no list of path, size, sha256 and stage; build it again")
        parts = PurePosixPath(entry["path"]).parts
        if not parts or parts[0] == "/" or ".." in parts or "\\" in entry["path"]:
            raise IntegrityError(f"{where}: {entry['path']!r} is no path inside a release; build or fetch it again")
    return identity, [Artifact(**entry) for entry in files]


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
    report: Callable[[str], None],
    finish: Callable[[Path], None],
) -> Path:
    """The folder in `store` that holds exactly what is published. One that was made before, from the same, is used
    again, so that a publish that broke off goes on with the same signature.

    `yanked` is the repo's list of withdrawn versions, which goes along from release to release.
    """
    parts = {"manifest": release.manifest_sha256, "provenance": provenance, "yanked": sha256_bytes(yanked or b"")}
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


def finish(folder: Path) -> None:
    """Make a staged folder final: the card that its provenance asks for, then the manifest over all of it.

    This is the one place where what is published gets its last bytes; a signature is made after the manifest.
    """
    provenance = read_json_object(folder / PROVENANCE_NAME)
    if override := provenance.get("override"):
        card = (folder / CARD_NAME).read_text("utf-8")
        write_text(folder / CARD_NAME, with_notice(card, override["verdict"], override["reason"]))
    rewrite_manifest(folder)


def rewrite_manifest(folder: Path) -> None:
    """Describe every file of `folder` anew; each keeps the stage that its manifest named, new ones get `publish`."""
    identity, artifacts = read_artifacts(folder)
    stages = {artifact.path: artifact.stage for artifact in artifacts}
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    described = [
        describe_artifact(folder / name, path=name, stage=stages.get(name, PUBLISH_STAGE))
        for name in sorted(names)
        if name != MANIFEST_NAME
    ]
    write_text(folder / MANIFEST_NAME, readable_json(release_manifest(identity, described)))


def verify_folder(folder: Path) -> list[Artifact]:
    """The files of a finished folder after each was compared with its manifest. Raises IntegrityError."""
    _, artifacts = read_artifacts(folder)
    for artifact in artifacts:
        if not (folder / artifact.path).is_file():
            raise IntegrityError(f"{folder / artifact.path}: missing; remove {folder} and publish again")
        _compare(artifact, folder / artifact.path)
    return artifacts


def with_notice(card: str, verdict: str, reason: str) -> str:
    """The card of a candidate: verdict and reason stand below its title."""
    head, title, rest = card.partition("\n# ")
    if not title:
        raise InputError(f"{CARD_NAME}: has no title line; run `dvc repro release`")
    heading, _, body = rest.partition("\n")
    notice = f"> **This is a candidate, not a release. The gate's verdict is {verdict}.** Published because: {reason}"
    return f"{head}{title}{heading}\n\n{notice}\n{body}"


def parse_yanked(data: bytes | None, where: str) -> dict[str, str]:
    """Version -> reason, from the bytes of yanked.json; none yet is an empty list."""
    if data is None:
        return {}
    versions = parse_json_object(data, where)
    if not all(isinstance(reason, str) for reason in versions.values()):
        raise IntegrityError(f"{where}: expected version and reason, as text")
    return versions
