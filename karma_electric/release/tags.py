"""The tag that a release is published under, and the list of those that are withdrawn.

`yanked.json` on main is that list: tag -> reason.
"""

from __future__ import annotations

from pathlib import Path

from karma_electric.canonical import parse_json_object, read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.release.card import PROVENANCE_NAME
from karma_electric.release.manifest import read_release_manifest


def release_tag(version: str, *, candidate: bool) -> str:
    """The version itself, which a passed gate earns; a candidate is told by its tag."""
    return f"{version}-candidate" if candidate else version


def tag_of(folder: Path) -> str:
    """The tag of the release in `folder`: what it is if provenance.json names no verdict that was overridden.

    Raises IntegrityError for files that say neither.
    """
    version = str(read_release_manifest(folder)["identity"].get("version"))
    path = folder / PROVENANCE_NAME
    if not path.exists():
        return version
    try:
        provenance = read_json_object(path)
    except InputError as error:
        raise IntegrityError(f"{error}; fetch the release again") from error
    return release_tag(version, candidate=provenance.get("override") is not None)


def parse_yanked(data: bytes | None, where: str) -> dict[str, str]:
    """Tag -> reason, from the bytes of yanked.json; none yet is an empty list. Raises IntegrityError."""
    if data is None:
        return {}
    try:
        tags = parse_json_object(data, where)
    except InputError as error:
        raise IntegrityError(f"{error}; ask the publisher") from error
    if not all(isinstance(reason, str) for reason in tags.values()):
        raise IntegrityError(f"{where}: expected tags and reasons, as text; ask the publisher")
    return tags
