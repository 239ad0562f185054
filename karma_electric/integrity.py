"""SHA-256 manifests and atomic writes: a wrong or half-written artifact is never taken for a good one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from karma_electric.canonical import readable_json
from karma_electric.errors import IntegrityError

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
    """A temporary sibling folder; it takes the place of `path` when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(0o644)
                _flush_to_disk(file)
        if path.exists():
            shutil.rmtree(path)
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
    """Path, size in bytes and SHA-256 of every file below `folder` but its manifest, sorted by path."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [
        {"path": name, "size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
        for name in paths
        if name != MANIFEST_NAME
    ]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, its form checked but not yet its hashes."""
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise IntegrityError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes; this is no manifest")
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: cannot be read ({error}); rebuild the stage that makes {folder}") from error
    if not isinstance(manifest, dict) or set(manifest) != {"identity", "files"}:
        raise IntegrityError(f"{path}: not a manifest (identity and files expected); rebuild the stage that makes it")
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
                f"{folder / name}: sha256 is {found[name]['sha256'][:12]}…, {MANIFEST_NAME} says "
                f"{promised[name]['sha256'][:12]}…; rebuild {folder}"
            )
    return manifest


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
