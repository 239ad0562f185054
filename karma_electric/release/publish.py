"""Publish a release: large files ahead, then one commit on a known parent, then the tag.

At every moment the repo shows the old release or the new one. A publish that broke off is completed by the next; one
that is complete has nothing to do.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import readable_json
from karma_electric.errors import InputError
from karma_electric.integrity import MANIFEST_NAME, sha256_bytes
from karma_electric.release.card import CARD_NAME, YANKED_NAME
from karma_electric.release.finishing import finish_release
from karma_electric.release.hub_repo import HubRepo, RemoteFile, RepoState
from karma_electric.release.manifest import Artifact, describe_artifact
from karma_electric.release.signature import SIGNATURE_NAME, public_key_of
from karma_electric.release.staging import Release, parse_yanked, read_artifacts, stage_release, verify_folder

Report = Callable[[str], None]
KEPT_NAMES = {".gitattributes"}  # the hub's own
UNBUILT_NAMES = {*KEPT_NAMES, CARD_NAME, "LICENSE"}  # what a repo may hold that was made by hand


@dataclass(frozen=True)
class Published:
    """What the hub holds now. `changed` is False when it held it before."""

    repo: str
    tag: str
    commit: str
    changed: bool


def publish_release(
    release: Release,
    repo: HubRepo,
    *,
    tag: str,
    provenance: dict[str, Any],
    private: bool,
    store: Path,
    key: Path | None,
    report: Report,
) -> Published:
    """Let `repo` show `release` on main and under `tag`. `store` keeps the staged copy until it is published; `key` is
    the private EC key that signs it, and without one it is not signed.

    Raises InputError for a tag that holds other bytes and for a repo that holds something else, SetupError when the
    hub can't be reached, refuses, or was changed meanwhile.
    """
    signer = sha256_bytes(public_key_of(key)) if key else ""
    state = _open(repo, private=private, report=report)
    if tag in state.tags:
        _check_published(release, repo, tag, state.tags[tag])
        report(f"{repo.id}: {tag} is published; nothing to do")
        return Published(repo.id, tag, state.tags[tag], changed=False)
    remote = repo.files(state.head)
    yanked = _check_same_model(repo, state.head, remote, release.name)
    kept = store / f"{release.name}-{tag}"
    folder = stage_release(
        release,
        kept,
        provenance=provenance,
        yanked=yanked,
        signer=signer,
        report=report,
        finish=functools.partial(finish_release, private_key=key),
    )
    commit = push_folder(folder, repo, state.head, remote, message=f"Publish {tag}", report=report)
    repo.tag(tag, commit)
    report(f"{repo.id}: {tag} is published")
    shutil.rmtree(kept)
    return Published(repo.id, tag, commit, changed=True)


def push_folder(
    folder: Path, repo: HubRepo, head: str, remote: dict[str, RemoteFile], *, message: str, report: Report
) -> str:
    """Let main hold exactly the finished `folder`. The commit: a new one on `head`, or `head` when it does already."""
    files = {artifact.path: (folder / artifact.path, artifact) for artifact in _whole(folder)}
    changed = {
        path: (local, artifact.sha256)
        for path, (local, artifact) in files.items()
        if path not in remote or not remote[path].is_same(local, size=artifact.size, sha256=artifact.sha256)
    }
    stale = sorted(remote.keys() - files.keys() - KEPT_NAMES)
    if not changed and not stale:
        return head
    size = sum(files[path][1].size for path in changed)
    report(f"{repo.id}: sending {len(changed)} of {len(files)} files, {size / 1e6:.1f} MB")
    return repo.commit(changed, stale, parent=head, message=message)


def _whole(folder: Path) -> list[Artifact]:
    """What the manifest names, the manifest, and the signature, which cannot be in the manifest that it signs."""
    named = read_artifacts(folder)[1]
    paths = {artifact.path for artifact in named}
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return [*named, *(describe_artifact(folder / path, path=path, stage="") for path in found if path not in paths)]


def _open(repo: HubRepo, *, private: bool, report: Report) -> RepoState:
    """The state of the repo, which is made when it is not there."""
    state = repo.state()
    if state is None:
        repo.create(private=private)
        report(f"{repo.id}: created")
        state = repo.state()
        if state is None:
            raise InputError(f"{repo.id}: is not there after it was made; does HF_TOKEN see it?")
    elif private and not repo.is_private():
        raise InputError(f"{repo.id}: is public, and --private would not change that; change it on the hub first")
    return state


def _check_published(release: Release, repo: HubRepo, tag: str, commit: str) -> None:
    """Raises InputError when the tag's files are not those of this release, but for those that publishing makes."""
    remote = repo.files(commit)
    made = {MANIFEST_NAME, CARD_NAME}
    for path, (artifact, local) in release.files.items():
        there = remote.get(path)
        if path in made or (there and there.is_same(local, size=artifact.size, sha256=artifact.sha256)):
            continue
        raise InputError(
            f"{repo.id}: {tag} is published with another {path}, and a tag is never moved; raise release.version in "
            "params.yaml, run `dvc repro`, commit, and publish that"
        )


def _check_same_model(repo: HubRepo, head: str, remote: dict[str, RemoteFile], name: str) -> bytes | None:
    """The repo's yanked.json, if it has one. Raises InputError when the repo is not one of this model's releases."""
    if MANIFEST_NAME not in remote:
        if others := sorted(remote.keys() - UNBUILT_NAMES):
            raise InputError(f"{repo.id}: holds {others[0]} and no release; publishing would remove it: name another")
        return None
    with tempfile.TemporaryDirectory() as place:
        repo.fetch(head, Path(place), only=[MANIFEST_NAME, YANKED_NAME])
        identity, _ = read_artifacts(Path(place))
        if identity["name"] != name:
            raise InputError(f"{repo.id}: holds the model {identity['name']}, not {name}; name another repo")
        yanked = Path(place) / YANKED_NAME
        return yanked.read_bytes() if yanked.is_file() else None


def yank_version(repo: HubRepo, version: str, *, reason: str, key: Path | None, report: Report) -> Published:
    """Say on main that a published version is withdrawn. Its tag stays; a new commit gets a new manifest.

    Raises InputError for a version that is not published, IntegrityError when what the hub holds is not whole.
    """
    state = repo.state()
    if state is None or version not in state.tags:
        known = ", ".join(sorted(state.tags)) if state and state.tags else "none"
        raise InputError(f"{repo.id}: has no version {version}; published are: {known}")
    remote = repo.files(state.head)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "release"
        repo.fetch(state.head, folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        for name in KEPT_NAMES:
            (folder / name).unlink(missing_ok=True)
        verify_folder(folder)
        path = folder / YANKED_NAME
        yanked = parse_yanked(path.read_bytes() if path.is_file() else None, f"{repo.id}: {YANKED_NAME}")
        if version in yanked:
            report(f"{repo.id}: {version} is yanked; nothing to do")
            return Published(repo.id, version, state.head, changed=False)
        if key is None and (folder / SIGNATURE_NAME).exists():
            raise InputError(f"{repo.id}: is signed, so its next commit must be; give the key: --key FILE")
        path.write_text(readable_json(dict(sorted({**yanked, version: reason}.items()))), "utf-8")
        finish_release(folder, private_key=key)
        commit = push_folder(folder, repo, state.head, remote, message=f"Yank {version}", report=report)
    report(f"{repo.id}: {version} is yanked")
    return Published(repo.id, version, commit, changed=True)
