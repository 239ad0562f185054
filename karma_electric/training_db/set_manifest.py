"""The manifest of a set: the file's hash, each row's hash, the hash of all row hashes, and counts by category."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from karma_electric.integrity import atomic_file

_ROWS_AT_ONCE = 1000


class SetManifest:
    """Takes the rows one by one and keeps them on disk, so that memory does not grow with the set.

    The file is readable JSON: sha256, rows, root_sha256, categories (in alphabetical order), row_sha256 (id -> the hash
    of the row's line without its end, ordered by id). `root_sha256` is the hash of all row hashes in that order.
    """

    def __init__(self) -> None:
        self._categories: Counter[str] = Counter()
        self._waiting: list[tuple[str, str]] = []
        self._database = sqlite3.connect("")  # a temporary file, removed when it is closed
        self._database.execute("CREATE TABLE rows (id TEXT NOT NULL, sha256 TEXT NOT NULL)")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def add(self, id_: str, category: str, sha256: str) -> None:
        """A row; its id is new."""
        self._waiting.append((id_, sha256))
        self._categories[category] += 1
        if len(self._waiting) == _ROWS_AT_ONCE:
            self._store()

    def write(self, path: Path, *, file_sha256: str) -> None:
        """Write the manifest atomically."""
        self._store()
        self._database.execute("CREATE TABLE sorted AS SELECT id, sha256 FROM rows ORDER BY id")
        root = hashlib.sha256()
        for batch in self._sorted():
            root.update("".join([sha256 for _, sha256 in batch]).encode("ascii"))
        head = {
            "sha256": file_sha256,
            "rows": self._categories.total(),
            "root_sha256": root.hexdigest(),
            "categories": dict(sorted(self._categories.items())),
        }
        text = json.dumps(head, ensure_ascii=False, indent=2).removesuffix("\n}")
        encode = json.encoder.encode_basestring
        with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(f'{text},\n  "row_sha256": {{')
            separator = "\n"
            for batch in self._sorted():
                stream.write(separator + ",\n".join([f'    {encode(id_)}: "{sha256}"' for id_, sha256 in batch]))
                separator = ",\n"
            stream.write("\n  }\n}\n" if self._categories else "}\n}\n")

    def _sorted(self) -> Iterator[list[tuple[str, str]]]:
        """(id, hash) of some rows at a time, ordered by id."""
        rows = self._database.execute("SELECT id, sha256 FROM sorted ORDER BY rowid")
        while batch := rows.fetchmany(_ROWS_AT_ONCE):
            yield batch

    def _store(self) -> None:
        self._database.executemany("INSERT INTO rows VALUES (?, ?)", self._waiting)
        self._waiting.clear()
