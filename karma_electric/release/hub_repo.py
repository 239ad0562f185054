"""One repo of the hub, through its own client: what it holds, one commit with a parent check, a tag.

The token is the client's: from HF_TOKEN, or from the hub's own store. It is in no argument, and in no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from karma_electric.errors import InputError, KarmaError, SetupError, shown

_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in the repo: `oid` is git's name of it (of its pointer, when it is large); `sha256` large files only."""

    size: int
    oid: str
    sha256: str | None

    def is_same(self, path: Path, *, size: int, sha256: str) -> bool:
        """Whether it has the bytes of the local file, whose size and SHA-256 are known."""
        if self.size != size:
            return False
        return self.sha256 == sha256 if self.sha256 is not None else self.oid == git_oid(path.read_bytes())


@dataclass(frozen=True, slots=True)
class RepoState:
    """The commit of main, and tag -> commit."""

    head: str
    tags: dict[str, str]


class HubRepo:
    """A repo by its name, `org/name`, and its kind, `model` or `dataset`.

    Every method raises one-line errors: InputError or SetupError.
    """

    def __init__(self, repo_id: str, *, kind: str = "model") -> None:
        if not is_repo_id(repo_id):
            raise InputError(f"--repo: found {shown(repo_id)}, expected ORG/NAME as in the hub's address of a repo")
        self.id = repo_id
        self.kind = kind
        self._api = HfApi()

    def state(self) -> RepoState | None:
        """None when there is no such repo, or none that this token may see."""
        with self._explained("looked at"):
            try:
                refs = self._api.list_repo_refs(self.id, repo_type=self.kind)
            except RepositoryNotFoundError:
                return None
        head = next((branch.target_commit for branch in refs.branches if branch.name == "main"), None)
        if head is None:
            raise InputError(f"{self.id}: has no branch main; make one on the hub, or name another repo")
        return RepoState(head, {tag.name: tag.target_commit for tag in refs.tags})

    def create(self, *, private: bool) -> None:
        with self._explained("created"):
            self._api.create_repo(self.id, repo_type=self.kind, private=private, exist_ok=True)

    def is_private(self) -> bool:
        with self._explained("looked at"):
            return bool(self._api.repo_info(self.id, repo_type=self.kind).private)

    def files(self, commit: str) -> dict[str, RemoteFile]:
        """Path -> file of a commit."""
        with self._explained("listed"):
            found = list(self._api.list_repo_tree(self.id, recursive=True, revision=commit, repo_type=self.kind))
        return {
            entry.path: RemoteFile(entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None)
            for entry in found
            if isinstance(entry, RepoFile)
        }

    def fetch(self, commit: str, folder: Path, *, only: list[str] | None = None) -> None:
        """Bring the files of a commit, or some of them, into `folder`."""
        with self._explained("downloaded"):
            snapshot_download(
                self.id, repo_type=self.kind, revision=commit, local_dir=folder, allow_patterns=only, max_workers=4
            )

    def commit(self, files: Mapping[str, tuple[Path, str]], deleted: list[str], *, parent: str, message: str) -> str:
        """Send large files ahead, then make one commit on `parent`, or none. `files` is path -> (file, SHA-256)."""
        additions = []
        for path, (local, sha256) in files.items():
            addition = CommitOperationAdd(path, str(local))
            addition.upload_info.sha256 = bytes.fromhex(sha256)  # known; and the hub refuses other bytes
            additions.append(addition)
        with self._explained("published to"):
            self._api.preupload_lfs_files(self.id, additions, repo_type=self.kind, free_memory=False)
            made = self._api.create_commit(
                self.id,
                [*additions, *map(CommitOperationDelete, deleted)],
                commit_message=message,
                repo_type=self.kind,
                parent_commit=parent,
            )
        return made.oid

    def tag(self, name: str, commit: str) -> None:
        with self._explained("tagged"):
            self._api.create_tag(self.id, tag=name, revision=commit, repo_type=self.kind)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        with quiet_client():
            try:
                yield
            except KarmaError:
                raise
            except Exception as error:  # the client's errors share no class of their own
                raise explain(error, self.id, what) from None


def is_repo_id(text: str) -> bool:
    """Whether `text` has the form ORG/NAME."""
    return _REPO_ID.fullmatch(text) is not None


def own_account() -> str:
    """The name of the token's user."""
    require_token()
    with quiet_client():
        try:
            return str(HfApi().whoami()["name"])
        except Exception as error:
            raise explain(error, "the token's account", "looked at") from None


def require_token() -> None:
    """Raises SetupError when there is no token. It is never asked for, and no parameter takes it."""
    if get_token() is None:
        raise SetupError("no token of the hub; set HF_TOKEN to one that may write, or run `hf auth login`")


@contextlib.contextmanager
def quiet_client() -> Iterator[None]:
    """Progress bars at a terminal only; no warnings, whose addresses of uploads are signed."""
    logger = logging.getLogger("huggingface_hub")
    level, bars_were_off = logger.level, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not bars_were_off:
            enable_progress_bars()


def explain(error: Exception, repo_id: str, what: str) -> KarmaError:
    """The one line for an error of the hub's client, without the token and without signed addresses."""
    root: BaseException = error
    while root.__cause__ is not None and isinstance(root, RuntimeError):
        root = root.__cause__
    status = root.response.status_code if isinstance(root, HfHubHTTPError) else None
    reason = _without_secrets(" ".join(str(root).split()))[:300]
    where = f"{repo_id} cannot be {what} at {constants.ENDPOINT}"
    said = f"({type(root).__name__}: {reason})"
    if status == 412:
        return SetupError(f"{repo_id}: somebody else changed it meanwhile; look at it, then publish again")
    if isinstance(root, RepositoryNotFoundError) or status in (401, 403):
        return SetupError(f"{where} {said}; check that HF_TOKEN may write to it, then publish again")
    return SetupError(f"{where} {said}; nothing is published in part: publish again when the hub can be reached")


def _without_secrets(text: str) -> str:
    """`text` without the token and without the query of any address."""
    token: Any = get_token()
    if token:
        text = text.replace(token, "***")
    return " ".join(word.partition("?")[0] + "?…" if "://" in word and "?" in word else word for word in text.split())


def git_oid(data: bytes) -> str:
    """The name that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
