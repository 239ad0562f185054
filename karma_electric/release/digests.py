"""The SHA-256 of many files at once, each read once; the digests are handed on to manifest and signature."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from karma_electric.errors import IntegrityError
from karma_electric.integrity import sha256_file


def sha256_files(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path below `folder` -> SHA-256, as 64 hex digits. The largest files go first, so that no thread ends up alone."""
    ordered = sorted(paths, key=lambda path: (folder / path).stat().st_size, reverse=True)
    with ThreadPoolExecutor() as pool:  # hashing lets other threads run
        return dict(zip(ordered, pool.map(lambda path: sha256_file(folder / path), ordered), strict=True))


def paths_below(folder: Path, *, ignored: Iterable[str] = ()) -> list[str]:
    """Every file below `folder`, as a relative path with slashes, sorted; nothing at or below `ignored`.

    Raises IntegrityError for a link and for what is no file: they may be other bytes tomorrow.
    """
    names = tuple(ignored)
    found: list[str] = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if any(name == ignore or name.startswith(f"{ignore}/") for ignore in names):
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise IntegrityError(f"{path}: a link or no file, so no hash covers it; put the file itself there")
        if path.is_file():
            found.append(name)
    return sorted(found)
