"""One small file a stage: what its code is, so that a change reruns just the stages that it can reach."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karma_electric.canonical import readable_json
from karma_electric.fingerprint.closure import import_closure, package_data
from karma_electric.fingerprint.code_hash import code_sha256
from karma_electric.fingerprint.packages import check_installed, distributions_of
from karma_electric.integrity import sha256_file, write_text


def write_fingerprints(root: Path, entries: Mapping[str, str], *, constraints: Path, output: Path) -> None:
    """Write `<stage>.json` into `output` for each stage -> module of `entries`.

    Raises SetupError when an installed package is not the pinned one, InputError for an import that leads nowhere.
    """
    check_installed(constraints)
    for stage, module in entries.items():
        write_text(output / f"{stage}.json", readable_json(fingerprint(root, module)))


def fingerprint(root: Path, module: str) -> dict[str, Any]:
    """Python's minor version, hashes of our modules and data, and versions of the packages that they use."""
    closure = import_closure(root, module)
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "modules": {name: code_sha256(path) for name, path in closure.modules.items()},
        "data": {p.relative_to(root).as_posix(): sha256_file(p) for p in package_data(root, closure.modules)},
        "packages": distributions_of(closure.third_party),
    }
