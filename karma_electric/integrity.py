"""SHA-256 manifests and atomic writes: a wrong or half-written artifact is never taken for a good one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from karma_electric.canonical import read_json_object, readable_json
from karma_electric.errors import InputError, IntegrityError

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes the place of `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        _flush_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling folder; it takes the place of `path` when the block ends well, else it is removed.

    What was at `path` is renamed before it is deleted, so that a process killed there leaves no half of it behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for entry in temporary.rglob("*"):
            if entry.is_symlink():
                continue
            entry.chmod(0o755 if entry.is_dir() else 0o644)
            if entry.is_file():
                _flush_to_disk(entry)
        if os.path.lexists(path):
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old.partial", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_manifest(folder: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Write `manifest.json` into `folder`: what it is (`identity`) and size and SHA-256 of every other file in it."""
    manifest = {"identity": dict(identity), "files": describe_files(folder)}
    write_text(folder / MANIFEST_NAME, readable_json(manifest))
    return manifest


def describe_files(folder: Path) -> list[dict[str, Any]]:
    """Path, size in bytes and SHA-256 of every file below `folder` but its manifest, sorted by path.

    A link to a file counts as the file. Raises IntegrityError for what cannot be hashed: a link to a folder or to
    nothing, a pipe, a socket.
    """
    paths: list[str] = []
    for entry in folder.rglob("*"):
        if entry.is_file():
            paths.append(entry.relative_to(folder).as_posix())
        elif entry.is_symlink() or not entry.is_dir():
            raise IntegrityError(f"{entry}: neither a file nor a folder, so no hash covers it; remove it")
    return [
        {"path": name, "size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in sorted(paths)
        if name != MANIFEST_NAME
    ]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, its form checked but not yet its hashes."""
    path = folder / MANIFEST_NAME
    try:
        manifest = read_json_object(path, max_bytes=MAX_MANIFEST_BYTES)
    except InputError as error:
        raise IntegrityError(f"{error}; rebuild the stage that makes {folder}") from error
    if set(manifest) != {"identity", "files"} or not isinstance(manifest["identity"], dict):
        raise IntegrityError(f"{path}: not a manifest (identity and files expected); rebuild the stage that makes it")
    files = manifest["files"]
    if not isinstance(files, list) or not all(map(_is_entry, files)):
        raise IntegrityError(f"{path}: files is no list of path, size and sha256; rebuild the stage that makes it")
    if len({entry["path"] for entry in files}) != len(files):
        raise IntegrityError(f"{path}: names a file twice; rebuild the stage that makes it")
    return manifest


def verify_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder` after every file was compared with it. Raises IntegrityError at the first difference."""
    manifest = read_manifest(folder)
    promised = {entry["path"]: entry for entry in manifest["files"]}
    found = {entry["path"]: entry for entry in describe_files(folder)}
    for name in sorted(promised.keys() | found.keys()):
        if name not in found:
            raise IntegrityError(f"{folder / name}: missing, though {MANIFEST_NAME} names it; rebuild {folder}")
        if name not in promised:
            raise IntegrityError(f"{folder / name}: not in {MANIFEST_NAME}; remove it or rebuild {folder}")
        if promised[name] != found[name]:
            raise IntegrityError(
                f"{folder / name}: sha256 is {_described(found[name])}, "
                f"{MANIFEST_NAME} says {_described(promised[name])}; rebuild {folder}"
            )
    return manifest


def _is_entry(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != {"path", "size", "sha256"}:
        return False
    return isinstance(value["path"], str) and type(value["size"]) is int and isinstance(value["sha256"], str)


def _described(entry: dict[str, Any]) -> str:
    return f"{entry['sha256'][:12]}… ({entry['size']} bytes)"


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
