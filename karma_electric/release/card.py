"""The model card: a template over the files of the release folder, so that it can be made again from them and compared.

The card states nothing that is not in `manifest.json`, `reproduce.json`, `gate.json`, `versions.yaml`, the statistics
of the axis, `metrics/` and `sets/`; and in `provenance.json`, which publishing adds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import CodeType
from typing import Any

import jinja2

from karma_electric.canonical import read_json_object
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import MANIFEST_NAME, sha256_file
from karma_electric.parameters import read_yaml
from karma_electric.release.card_numbers import FILTERS, Binding, Fact, Marker, each, is_held, is_known
from karma_electric.release.licenses import is_llama
from karma_electric.release.manifest import read_release_manifest

TEMPLATE = "model-card.md.jinja"
CARD_NAME = "README.md"
PROVENANCE_NAME = "provenance.json"
YANKED_NAME = "yanked.json"
MAX_CARD_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Card:
    """The card's text and every value in it with its source. `sources` are the files of these values."""

    text: str
    bindings: list[Binding]
    sources: list[str]

    @property
    def numbers(self) -> list[Binding]:
        """The bindings whose text holds a digit."""
        return [binding for binding in self.bindings if any(sign.isdigit() for sign in binding.text)]


def render_card(folder: Path, manifest: dict[str, Any] | None = None) -> Card:
    """The card of the release in `folder`. `manifest` stands for a manifest.json that is not yet written.

    Raises InputError for a value that the card needs and a file lacks, and for a number that is bound to none.
    """
    return render_facts(TEMPLATE, _facts(folder, read_release_manifest(folder) if manifest is None else manifest))


def model_card(folder: Path, manifest: dict[str, Any]) -> str:
    """The text of the card of the release in `folder`."""
    return render_card(folder, manifest).text


def render_facts(template: str, facts: dict[str, Any]) -> Card:
    """The card that a template of this package makes of `facts`. Raises InputError as `render_card` does."""
    marker = Marker()
    environment = _environment(marker)
    source = resources.files("karma_electric.release").joinpath("templates", template).read_text("utf-8")
    code = _compiled(source)
    marked = jinja2.Template.from_code(environment, code, environment.make_globals(None)).render(facts)
    text, bindings = marker.read(marked, template)
    return Card(text, bindings, sorted({binding.file for binding in bindings}))


def _environment(marker: Marker) -> jinja2.Environment:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - Markdown from our own metrics, not HTML from outside
        finalize=marker.finalize,
    )
    environment.filters.update(FILTERS)
    environment.globals["each"] = each
    environment.globals["is_llama"] = lambda license_name: is_llama(str(license_name))
    environment.tests["known"] = is_known
    environment.tests["held_by"] = is_held
    return environment


@functools.lru_cache(maxsize=4)
def _compiled(source: str) -> CodeType:
    """The code of a template, which takes longer to make than to run. It prints by the environment that runs it."""
    return _environment(Marker()).compile(source)


def verify_card(folder: Path) -> Card:
    """Make the card of `folder` again and compare it. Raises IntegrityError at the first difference.

    The files that it is made from must be those that the manifest names.
    """
    manifest = read_release_manifest(folder)
    try:
        card = render_card(folder, manifest)
    except (InputError, jinja2.TemplateError) as error:
        raise IntegrityError(f"{folder}: its card cannot be made again ({error}); fetch the release again") from error
    promised = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    for name in card.sources:
        if name != MANIFEST_NAME and promised.get(name) != sha256_file(folder / name):
            raise IntegrityError(f"{folder / name}: not as {MANIFEST_NAME} names it; fetch the release again")
    _compare(folder / CARD_NAME, card)
    return card


def _compare(path: Path, card: Card) -> None:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_CARD_BYTES)
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); fetch the release again") from error
    expected = card.text.encode("utf-8")
    if data == expected:
        return
    found_lines, lines = data.split(b"\n"), expected.split(b"\n")
    pairs = zip(found_lines, lines, strict=False)
    line = next((number for number, (a, b) in enumerate(pairs, 1) if a != b), min(len(found_lines), len(lines)) + 1)
    bound = [binding for binding in card.bindings if binding.line == line]
    values = "; ".join(f"{binding.file} {binding.key} says {binding.text!r}" for binding in bound) or "the template"
    raise IntegrityError(f"{path}:{line}: not what its sources say ({values}); fetch or build the release again")


def _facts(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What the template may print, by name; under a name for each adapter, set or type, a mapping of them."""
    identity = Fact(manifest["identity"], MANIFEST_NAME, "identity")
    facts: dict[str, Any] = {
        "identity": identity,
        "files": Fact({entry["path"]: entry for entry in manifest["files"]}, MANIFEST_NAME, "files"),
        "recipe": _file(folder, "reproduce.json")["recipe"],
        "gate": _file(folder, "gate.json"),
        "axis_stats": _file(folder, f"axis_stats_{manifest['identity'].get('version')}.json"),
        "interpolate": _file(folder, "metrics/interpolate.json"),
        "acap": _file(folder, "metrics/acap.json"),
        "history": Fact(read_yaml(folder / "versions.yaml"), "versions.yaml")["versions"],
    }
    facts |= added_facts(folder)
    kinds = (("train", "adapters", "metrics/train"), ("quantize", "gguf", "metrics/quantize"))
    return (
        facts
        | _sets(folder, manifest)
        | {
            name: {kind: _file(folder, f"{place}/{kind}.json") for kind in manifest["identity"].get(key, ())}
            for name, key, place in kinds
        }
    )


def _sets(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    sets = {name: _file(folder, f"sets/{name}.manifest.json") for name in manifest["identity"].get("training_sets", ())}
    return {"sets": sets, "last_set": list(sets.values())[-1] if sets else Fact({}, MANIFEST_NAME)}


def added_facts(folder: Path) -> dict[str, Fact]:
    """`provenance` and `yanked`: what publishing adds, empty before."""
    return {
        name.removesuffix(".json"): _file(folder, name) if (folder / name).exists() else Fact({}, name)
        for name in (PROVENANCE_NAME, YANKED_NAME)
    }


def _file(folder: Path, name: str) -> Fact:
    return Fact(read_json_object(folder / name), name)
