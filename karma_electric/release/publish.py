"""Publish a release, or a training set of one: large files ahead, then one commit on a known parent, then the tag.

At every moment the repo shows the old release or the new one. A publish that broke off is completed by the next; one
that is complete has nothing to do.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.canonical import readable_json
from karma_electric.errors import InputError
from karma_electric.integrity import MANIFEST_NAME
from karma_electric.release.card import CARD_NAME, PROVENANCE_NAME, YANKED_NAME
from karma_electric.release.finishing import finish_release
from karma_electric.release.hub_repo import HubRepo, RemoteFile, RepoState, git_oid
from karma_electric.release.manifest import Artifact, describe_artifact
from karma_electric.release.signature import PUBLIC_KEY_NAME, Signer, public_key_of
from karma_electric.release.signature_file import SIGNATURE_NAME
from karma_electric.release.staging import Publication, read_artifacts, rendered_card, stage, verify_folder
from karma_electric.release.tags import parse_yanked, tag_of

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
    publication: Publication,
    repo: HubRepo,
    *,
    tag: str,
    provenance: dict[str, Any],
    private: bool,
    store: Path,
    key: Signer | None,
    report: Report,
) -> Published:
    """Let `repo` show `publication` on main and under `tag`. `store` keeps the staged copy until it is published; `key`
    is what signs it, and without it there is no signature.

    A tag is never moved. Where it is there, and main still shows it, a card that is another now is a new commit on
    main, as is a signature by another key; all else was published.

    Raises InputError for a tag that holds other bytes and for a repo that holds something else, SetupError when the
    hub can't be reached, refuses, or was changed meanwhile.
    """
    provenance = {**provenance, "repo": repo.id}
    state = _open(repo, private=private, report=report)
    remote = repo.files(state.head)
    shown = _shown(repo, state.head, remote, publication.name)
    yanked = shown.yanked if shown else None
    kept = store / repo.kind / f"{publication.name}-{tag}"
    published = state.tags.get(tag)
    if published is not None:
        _check_published(publication, repo, tag, remote if published == state.head else repo.files(published))
        card = rendered_card(publication, provenance=provenance, yanked=yanked)
        if shown is None or shown.tag != tag or not _is_other(remote, card, key):
            report(f"{repo.id}: {tag} is published; nothing to do")
            shutil.rmtree(kept, ignore_errors=True)
            return Published(repo.id, tag, published, changed=False)
    if key is None and SIGNATURE_NAME in remote:
        raise InputError(f"{repo.id}: is signed, so its next commit must be: --key FILE or --keyless")
    folder = stage(publication, kept, provenance=provenance, yanked=yanked, key=key, report=report)
    message = f"Publish {tag}" if published is None else f"Show {tag} anew"
    commit = push_folder(folder, repo, state.head, remote, message=message, report=report)
    if published is None:
        repo.tag(tag, commit)
    report(
        f"{repo.id}: {tag} is {'published' if published is None else 'shown anew: its card or signature is another'}"
    )
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


def _check_published(publication: Publication, repo: HubRepo, tag: str, there: dict[str, RemoteFile]) -> None:
    """Raises InputError when the files `there` are not those of this release, but for those that publishing makes."""
    for path, (artifact, local) in publication.files.items():
        found = there.get(path)
        if path == CARD_NAME or (found and found.is_same(local, size=artifact.size, sha256=artifact.sha256)):
            continue
        raise InputError(
            f"{repo.id}: {tag} is published with another {path}, and a tag is never moved; raise release.version in "
            "params.yaml, run `dvc repro`, commit, and publish that"
        )


@dataclass(frozen=True)
class _Shown:
    """What main shows: the tag of its release, and its yanked.json."""

    tag: str
    yanked: bytes | None


def _shown(repo: HubRepo, head: str, remote: dict[str, RemoteFile], name: str) -> _Shown | None:
    """None for a repo without a release. Raises InputError when it is not one of this model's or set's repos."""
    if MANIFEST_NAME not in remote:
        if others := sorted(remote.keys() - UNBUILT_NAMES):
            raise InputError(f"{repo.id}: holds {others[0]} and no release; publishing would remove it: name another")
        return None
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        repo.fetch(head, folder, only=[MANIFEST_NAME, PROVENANCE_NAME, YANKED_NAME])
        identity, _ = read_artifacts(folder)
        if identity["name"] != name:
            raise InputError(f"{repo.id}: holds {identity['name']}, not {name}; name another repo")
        yanked = folder / YANKED_NAME
        return _Shown(tag_of(folder), yanked.read_bytes() if yanked.is_file() else None)


def _is_other(remote: dict[str, RemoteFile], card: str, key: Signer | None) -> bool:
    """Whether main has another card than `card`, or no signature by `key`, where one is given."""
    wanted = {CARD_NAME: card.encode("utf-8")}
    if isinstance(key, Path):
        wanted[PUBLIC_KEY_NAME] = public_key_of(key)
    elif key is not None and (SIGNATURE_NAME not in remote or PUBLIC_KEY_NAME in remote):
        return True
    return any(name not in remote or remote[name].oid != git_oid(data) for name, data in wanted.items())


def yank_version(repo: HubRepo, tag: str, *, reason: str, key: Signer | None, report: Report) -> Published:
    """Say on main that what was published under `tag` is withdrawn. The tag stays; a new commit gets a new manifest.

    Raises InputError for a tag that is not published, IntegrityError when what the hub holds is not whole.
    """
    state = repo.state()
    if state is None or tag not in state.tags:
        known = ", ".join(sorted(state.tags)) if state and state.tags else "none"
        raise InputError(f"{repo.id}: has no version {tag}; published are: {known}")
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
        if yanked.get(tag) == reason:
            report(f"{repo.id}: {tag} is yanked; nothing to do")
            return Published(repo.id, tag, state.head, changed=False)
        if key is None and (folder / SIGNATURE_NAME).exists():
            raise InputError(f"{repo.id}: is signed, so its next commit must be: --key FILE or --keyless")
        path.write_text(readable_json(dict(sorted({**yanked, tag: reason}.items()))), "utf-8")
        finish_release(folder, private_key=key)
        commit = push_folder(folder, repo, state.head, remote, message=f"Yank {tag}", report=report)
    report(f"{repo.id}: {tag} is yanked")
    return Published(repo.id, tag, commit, changed=True)
