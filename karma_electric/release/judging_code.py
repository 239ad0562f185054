"""Which code of the gate a release was published with: its report has the words of that code."""

from __future__ import annotations

import functools
from pathlib import Path

import karma_electric
from karma_electric.canonical import canonical_json
from karma_electric.fingerprint.closure import import_closure
from karma_electric.integrity import sha256_bytes, sha256_file

JUDGING_CODE = "judging_code_sha256"  # its key in provenance.json
_ENTRIES = ("karma_electric.gate.judging", "karma_electric.gate.report")


@functools.cache
def judging_code_sha256() -> str:
    """SHA-256 of the files that judge answers and write the report, and of all of ours that these import.

    Of their bytes, so that it is the same under every version of Python.
    """
    root = Path(karma_electric.__file__).parents[1]
    files = {name: path for entry in _ENTRIES for name, path in import_closure(root, entry).modules.items()}
    return sha256_bytes(canonical_json({name: sha256_file(path) for name, path in files.items()}).encode("utf-8"))
