"""What the licence of the base model asks of a release: its text, a notice, and for Llama a name."""

from __future__ import annotations

from importlib import resources

from karma_electric.errors import InputError

_LLAMA_NOTICE = (
    "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc. All Rights Reserved."
)
_TEXTS = {"apache-2.0": "apache-2.0.txt", "llama3.1": "llama3.1.txt"}


def is_llama(license_name: str) -> bool:
    """Whether a licence of the hub's list is one of Meta's for Llama."""
    return license_name.startswith("llama")


def check_title(title: str, license_name: str) -> None:
    """Raises InputError for a model of a Llama base whose name does not begin with Llama, as section 1.b.i asks."""
    if is_llama(license_name) and not title.startswith("Llama"):
        raise InputError(
            f"release.title: found {title!r}, but the licence {license_name} asks for a name that begins with 'Llama'"
        )


def license_files(license_name: str, *, title: str, base_repo: str) -> dict[str, str]:
    """File name -> text of LICENSE and NOTICE. Raises InputError for a licence whose text is not at hand."""
    if license_name not in _TEXTS:
        known = ", ".join(sorted(_TEXTS))
        raise InputError(
            f"base.license: found {license_name!r}, but texts are at hand for {known}; "
            "add its text to karma_electric/release/license_texts and its name to licenses.py"
        )
    check_title(title, license_name)
    text = resources.files("karma_electric.release").joinpath("license_texts", _TEXTS[license_name]).read_text("utf-8")
    notice = f"{title} is a modified version of {base_repo}: fine-tuned, and converted to GGUF.\n"
    if license_name == "llama3.1":
        notice = f"{_LLAMA_NOTICE}\n\nBuilt with Llama.\n\n{notice}"
    return {"LICENSE": text, "NOTICE": notice}
