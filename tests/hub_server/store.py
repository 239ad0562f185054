"""What the hub knows, on disk: repos, commits, files and large objects. Every change is one rename.

objects/<sha256>              large files
parts/<sha256>/<number>       parts of one that is being uploaded
repos/<type>/<org>/<name>/    settings.json, refs.json, blobs/<git oid>, commits/<oid>.json
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

Files = dict[str, dict[str, Any]]  # path -> oid, size and, of a large file, sha256
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PIECE_BYTES = 1024 * 1024


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class HubError(Exception):
    """An answer that refuses: a status, the hub's error code, and words."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def git_oid(data: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git holds in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    Path(name).replace(path)


def write_json(path: Path, value: object) -> None:
    write_file(path, json.dumps(value, indent=1).encode())


@dataclass(frozen=True)
class Repo:
    """One repo. A `revision` is a branch, a tag or a commit."""

    folder: Path
    kind: str  # model | dataset
    id: str

    @property
    def private(self) -> bool:
        return self._settings()["private"]

    @property
    def gated(self) -> bool:
        """Whether its files are for those only who accepted its licence, which nobody did."""
        return self._settings()["gated"]

    def _settings(self) -> dict[str, bool]:
        found: dict[str, bool] = json.loads((self.folder / "settings.json").read_text())
        return found

    def set(self, **settings: bool) -> None:
        write_json(self.folder / "settings.json", {**self._settings(), **settings})

    def refs(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads((self.folder / "refs.json").read_text())
        return found

    def commit_of(self, revision: str) -> str:
        refs = self.refs()
        found = refs["branches"].get(revision) or refs["tags"].get(revision)
        if found is None and (self.folder / "commits" / f"{revision}.json").is_file():
            found = revision
        if found is None:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def commit(self, oid: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "commits" / f"{oid}.json").read_text())
        return found

    def files(self, revision: str) -> Files:
        found: Files = self.commit(self.commit_of(revision))["files"]
        return found

    def add_blob(self, data: bytes) -> dict[str, Any]:
        oid = git_oid(data)
        write_file(self.folder / "blobs" / oid, data)
        return {"oid": oid, "size": len(data)}

    def add_commit(self, files: Files, *, parent: str | None, title: str, description: str = "") -> str:
        """Write the commit, then let main be it: before the last rename nobody sees a part of it."""
        commit = {"parent": parent, "title": title, "description": description, "files": files}
        oid = hashlib.sha1(json.dumps(commit, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
        write_json(self.folder / "commits" / f"{oid}.json", commit)
        refs = self.refs()
        refs["branches"]["main"] = oid
        write_json(self.folder / "refs.json", refs)
        return oid

    def set_tag(self, tag: str, revision: str) -> None:
        refs = self.refs()
        if tag in refs["tags"]:
            raise HubError(409, "", f"Tag reference exists already: {tag}")
        refs["tags"][tag] = self.commit_of(revision)
        write_json(self.folder / "refs.json", refs)

    def delete_tag(self, tag: str) -> None:
        refs = self.refs()
        if refs["tags"].pop(tag, None) is None:
            raise HubError(404, "RevisionNotFound", f"no tag {tag}")
        write_json(self.folder / "refs.json", refs)


class Store:
    """All repos, and the large files that they share. `lock` is held while a request changes a repo."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        folder.mkdir(parents=True, exist_ok=True)

    def repo(self, kind: str, repo_id: str) -> Repo:
        folder = self._folder(kind, repo_id)
        if not (folder / "refs.json").is_file():
            raise HubError(404, "RepoNotFound", "Repository not found")
        return Repo(folder, kind, repo_id)

    def create_repo(self, kind: str, repo_id: str, *, private: bool) -> Repo:
        folder = self._folder(kind, repo_id)
        if (folder / "refs.json").is_file():
            raise HubError(409, "", "You already created this repo")
        write_json(folder / "settings.json", {"private": private, "gated": False})
        write_json(folder / "refs.json", {"branches": {}, "tags": {}})
        repo = Repo(folder, kind, repo_id)
        attributes = repo.add_blob(b"*.gguf filter=lfs diff=lfs merge=lfs -text\n")
        repo.add_commit({".gitattributes": attributes}, parent=None, title="initial commit")
        return repo

    def repos(self) -> list[Repo]:
        return [
            Repo(path.parent, path.parents[2].name, "/".join(path.parts[-3:-1]))
            for path in sorted((self.folder / "repos").glob("*/*/*/refs.json"))
        ]

    def object(self, sha256: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise HubError(400, "", "an oid is 64 hex digits")
        return self.folder / "objects" / sha256

    def add_object(self, file: Path) -> dict[str, Any]:
        """Keep a large file; what a commit says of it."""
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        self.object(sha256).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, self.object(sha256))
        return self.described(sha256)

    def described(self, sha256: str) -> dict[str, Any]:
        """What a commit says of a large file that is here."""
        size = self.object(sha256).stat().st_size
        return {"oid": git_oid(lfs_pointer(sha256, size)), "size": size, "sha256": sha256}

    def part(self, sha256: str, number: int) -> Path:
        return self.folder / "parts" / self.object(sha256).name / str(number)

    def join_parts(self, sha256: str, count: int) -> None:
        """Make one object of its parts, if they are what their oid says."""
        found = hashlib.sha256()
        partial = self.part(sha256, 0)
        with partial.open("wb") as stream:
            for number in range(1, count + 1):
                with self.part(sha256, number).open("rb") as part:
                    copy(part, stream, found.update)
        if found.hexdigest() != sha256:
            raise HubError(400, "", "the parts are not the object that was announced")
        self.object(sha256).parent.mkdir(parents=True, exist_ok=True)
        partial.replace(self.object(sha256))
        for number in range(1, count + 1):
            self.part(sha256, number).unlink()

    def _folder(self, kind: str, repo_id: str) -> Path:
        names = repo_id.split("/")
        if kind not in ("model", "dataset") or len(names) != 2 or not all(map(_NAME.fullmatch, names)):
            raise HubError(404, "RepoNotFound", "Repository not found")
        return self.folder / "repos" / kind / names[0] / names[1]


def copy(source: Readable, target: BinaryIO, update: Callable[[bytes], None]) -> None:
    """Copy a stream piece by piece, showing each piece to a hash."""
    while piece := source.read(_PIECE_BYTES):
        target.write(piece)
        update(piece)
