"""What is another here than where a release was built, so that its bytes need not be equal when it is made again."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import karma_electric
from karma_electric.canonical import read_json_object
from karma_electric.fingerprint.closure import import_closure
from karma_electric.fingerprint.packages import distributions_of
from karma_electric.release.card import PROVENANCE_NAME
from karma_electric.release.readiness import machine

REBUILDING = "karma_electric.release.rebuild"  # whose packages count


def environment_differences(folder: Path, reproduce: dict[str, Any]) -> list[str]:
    """One line for each difference in processor, system, Python or a package that a rebuild uses."""
    found: list[str] = []
    path = folder / PROVENANCE_NAME
    recorded = read_json_object(path).get("machine") if path.is_file() else None
    if not isinstance(recorded, dict):
        found.append("the machine is not recorded")
    else:
        here = machine()
        names = ("system", "architecture", "processor")
        found += [
            f"{name}: {here[name]}, was {recorded.get(name)}" for name in names if here[name] != recorded.get(name)
        ]
    python = ".".join(platform.python_version_tuple()[:2])
    if python != reproduce.get("python"):
        found.append(f"Python: {python}, was {reproduce.get('python')}")
    packages = reproduce.get("packages")
    pins = packages if isinstance(packages, dict) else {}
    root = Path(karma_electric.__file__).parents[1]
    installed = distributions_of(import_closure(root, REBUILDING).third_party)
    found += [
        f"{name}: {version}, was {pins.get(name)}" for name, version in installed.items() if pins.get(name) != version
    ]
    return found
