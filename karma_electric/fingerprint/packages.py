"""Which installed packages a stage's results depend on, and whether they are the pinned ones."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from karma_electric.errors import InputError, SetupError, shown

# Packages that shape results without an import of ours: package -> what it loads. A test records what each stage
# loads and fails on a package that is neither imported by us, nor here, nor in WITHOUT_INFLUENCE.
LOADED_BY_OTHERS: dict[str, tuple[str, ...]] = {
    "transformers": ("accelerate", "huggingface-hub", "jinja2", "numpy", "safetensors", "tokenizers", "torch"),
    "trl": ("accelerate", "bitsandbytes", "datasets", "peft", "transformers"),
    "peft": ("accelerate", "safetensors", "torch", "transformers"),
    "datasets": ("pandas", "pyarrow"),
    "bitsandbytes": ("torch",),
    "gguf": ("numpy",),
    "pydantic": ("pydantic-core",),
    "numba": ("llvmlite", "numpy"),
    "scipy": ("numpy",),
    "safetensors": ("numpy",),
    "torch": ("numpy",),
}

# Where they are only loaded by others, these parse, print, transport or cache: they cannot change a byte of an output.
# A stage that imports one of them (gate: scipy) has it in its fingerprint all the same.
WITHOUT_INFLUENCE = frozenset(
    {
        "annotated-types",
        "anyio",
        "cffi",
        "charset-normalizer",
        "colorama",
        "dill",
        "filelock",
        "fsspec",
        "h11",
        "httpcore2",
        "httpx2",
        "idna",
        "markupsafe",
        "mpmath",
        "multiprocess",
        "networkx",
        "packaging",
        "protobuf",
        "psutil",
        "pycparser",
        "pydot",
        "python-dateutil",
        "regex",
        "rich",
        "scipy",
        "setuptools",
        "six",
        "sniffio",
        "sympy",
        "tabulate",
        "tqdm",
        "truststore",
        "typing-extensions",
        "typing-inspection",
        "wcwidth",
        "xxhash",
    }
)

_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)$")


def distributions_of(top_level_names: Iterable[str]) -> dict[str, str]:
    """Distribution -> installed version, for imported top-level names and for what those load in turn.

    Raises SetupError for a name that no installed distribution provides.
    """
    providers = _providers()
    waiting: list[str] = []
    for name in sorted(top_level_names):
        if name not in providers:
            raise SetupError(f"the package {name!r} is imported but not installed; run `make install`")
        waiting.extend(normalized(provider) for provider in providers[name])
    found: dict[str, str] = {}
    while waiting:
        distribution = waiting.pop()
        if distribution not in found:
            found[distribution] = _installed_version(distribution)
            waiting.extend(LOADED_BY_OTHERS.get(distribution, ()))
    return dict(sorted(found.items()))


@functools.cache
def _providers() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _installed_version(distribution: str) -> str:
    try:
        return public_version(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        raise SetupError(f"the package {distribution!r} is needed but not installed; run `make install`") from None


def read_constraints(path: Path) -> dict[str, str]:
    """Distribution -> version from lines of the form `name==version`; blank lines and `#` comments are allowed."""
    pins: dict[str, str] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected lines of the form name==version") from error
    for number, line in enumerate(lines, start=1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = _PIN.match(text)
        if match is None:
            raise InputError(f"{path}:{number}: found {shown(text)}, expected name==version and nothing else")
        pins[normalized(match[1])] = match[2]
    return pins


def check_installed(constraints: Path) -> None:
    """Raises SetupError when an installed package is of another version than the constraints say."""
    for name, pinned in read_constraints(constraints).items():
        try:
            installed = public_version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue  # for another platform, or an extra that is not asked for
        if installed != pinned:
            raise SetupError(
                f"{constraints}: {name} is pinned at {pinned}, but {installed} is installed; "
                "run `make install`, or change the pin"
            )


def normalized(name: str) -> str:
    """A distribution's name in the one spelling of PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def public_version(version: str) -> str:
    """Without the local part: 2.13.0+cpu and 2.13.0+cu130 are the same release."""
    return version.split("+")[0]
