"""Which files of a release were made again, and what each was found to be."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from karma_electric.integrity import MANIFEST_NAME, sha256_file
from karma_electric.release.comparison import (
    ADAPTER_TOLERANCE,
    AXIS_TOLERANCE,
    MEASURED_STEP,
    MEASURED_TOLERANCE,
    NUMBER_TOLERANCE,
    Result,
    adapter_difference,
    gguf_difference,
    same_bytes,
    text_difference,
    torch_axis_difference,
    translated,
)
from karma_electric.release.manifest import read_release_manifest

MEASURED = "metrics/quantize/"  # numbers that llama.cpp's arithmetic on this CPU gives


@dataclass(frozen=True, slots=True)
class Line:
    """What became of a file, or of the base and the merged weights, which are no files of the release."""

    path: str
    result: Result
    detail: str


class Comparison:
    """Compares what was made again with the release in `folder`. `exact`: only equal bytes will do."""

    def __init__(self, folder: Path, *, exact: bool) -> None:
        entries = read_release_manifest(folder)["files"]
        self.published = {entry["path"] for entry in entries} | {MANIFEST_NAME}
        self.lines: list[Line] = []
        self._folder, self._exact = folder, exact
        self._hashes: dict[str, str] = {}  # of what was made -> of what was published

    def has(self, path: str) -> bool:
        """Whether a file was compared already."""
        return any(line.path == path for line in self.lines)

    def made(self, name: str, recorded: str, made: str, where: str) -> None:
        """Compare what is only known by the SHA-256 of its manifest: `recorded`, and found in `where`."""
        if recorded == made:
            self._add(name, "equal", f"manifest {made[:12]}…, {where}")
            return
        self._hashes[made] = recorded
        detail = f"manifest {made[:12]}…, {where} is {recorded[:12]}…; the GGUF files show how far that is"
        self._add(name, "differs" if self._exact else "near", detail)

    def renamed(self, made: Path, published: Path) -> None:
        """`made` stands for a published file and names another base."""
        self._hashes[sha256_file(made)] = sha256_file(published)

    def text(self, path: str, made: Path, *, python: str = "") -> None:
        """Compare texts; on another machine, their numbers nearly. `python` is the version in the published text."""

        def near() -> tuple[bool, str]:
            here = ".".join(platform.python_version_tuple()[:2])
            data = translated(made.read_bytes(), self._hashes)
            if python:
                data = data.replace(f'"python": "{here}"'.encode(), f'"python": "{python}"'.encode())
            measured = path.startswith(MEASURED)
            relative, absolute = (MEASURED_TOLERANCE, MEASURED_STEP) if measured else (NUMBER_TOLERANCE, 0.0)
            published = (self._folder / path).read_bytes().decode("utf-8", "replace")
            found = text_difference(published, data.decode("utf-8", "replace"), relative=relative, absolute=absolute)
            allowed = f"{relative:g}" + (f" or {absolute:g} absolutely" if absolute else "")
            if found is None:
                return False, f"another text, or a number by more than {allowed} of its value"
            return True, f"numbers by up to {found:.2g} of their value, at most {allowed}; hashes follow"

        self._compare(path, made, near)

    def adapter(self, path: str, made: Path) -> None:
        """Compare the adapter folder `path` with the one in `made`."""

        def near() -> tuple[bool, str]:
            found = adapter_difference(self._folder / path, made)
            return found <= ADAPTER_TOLERANCE, f"updates by {found:.2g} of their norm, at most {ADAPTER_TOLERANCE:g}"

        for file in sorted(made.iterdir(), key=lambda file: (file.name == MANIFEST_NAME, file.name)):
            if file.suffix == ".safetensors":
                self._compare(f"{path}/{file.name}", file, near)
            else:
                self.text(f"{path}/{file.name}", file)

    def gguf(self, path: str, made: Path) -> None:
        """Compare GGUF files: of a model, or of an axis."""

        def near() -> tuple[bool, str]:
            share, worst = gguf_difference(self._folder / path, made, self._hashes)
            return share <= 1, f"{worst} by {share:.2g} times what its type may differ"

        self._compare(path, made, near)

    def torch_axis(self, path: str, made: Path) -> None:
        """Compare axis files of PyTorch."""

        def near() -> tuple[bool, str]:
            found = torch_axis_difference(self._folder / path, made)
            return found <= AXIS_TOLERANCE, f"values by up to {found:.2g}, at most {AXIS_TOLERANCE:g}"

        self._compare(path, made, near)

    def finish(self, taken: Iterable[str]) -> tuple[str, ...]:
        """The files that were taken as they are; a published file that is neither of these nor made again differs."""
        kept = sorted(self.published.intersection(taken))
        for path in sorted(self.published - {line.path for line in self.lines} - set(kept)):
            self._add(path, "differs", "nothing makes this file")
        return tuple(kept)

    def _compare(self, path: str, made: Path, near: Callable[[], tuple[bool, str]]) -> None:
        if path not in self.published:
            self._add(path, "differs", "is made again, and the release lacks it")
        elif same_bytes(self._folder / path, made):
            self._add(path, "equal", "")
        else:
            holds, detail = near()
            self._hashes[sha256_file(made)] = sha256_file(self._folder / path)
            self._add(path, "near" if holds and not self._exact else "differs", detail)

    def _add(self, path: str, result: Result, detail: str) -> None:
        self.lines.append(Line(path, result, detail))
