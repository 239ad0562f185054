"""A release made again from what its repo holds, from the adapters on, by the functions that the stages call.

Taken as they are, because only training, generation and curation make them: the adapters of the sets, the axis, the
projections, the answers of the gate, the metrics of training, the manifests of the sets, and the history. The base
model comes from its pinned source. Everything else is made again and compared.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from karma_electric.adapters.blend import blend_adapters
from karma_electric.adapters.merge import merge_adapter
from karma_electric.adapters.params import InterpolateParams
from karma_electric.axis.calibration import calibrate
from karma_electric.axis.params import AcapParams
from karma_electric.base_model.make import make_base
from karma_electric.base_model.params import BaseSection
from karma_electric.canonical import read_json_object, readable_json, write_json_lines
from karma_electric.errors import InputError, IntegrityError, SetupError
from karma_electric.gate.report import gate_report
from karma_electric.gate.run import replay_gate
from karma_electric.gguf_files.params import QuantizeParams
from karma_electric.gguf_files.quantize import make_gguf
from karma_electric.integrity import MANIFEST_NAME, read_manifest, sha256_file, write_manifest, write_text
from karma_electric.parameters import Parameters, parse_parameters
from karma_electric.release.build import ReleaseInputs, build_release
from karma_electric.release.card import CARD_NAME, PROVENANCE_NAME, YANKED_NAME
from karma_electric.release.digests import paths_below
from karma_electric.release.environment import environment_differences
from karma_electric.release.finishing import PUBLISH_STAGE, write_card_and_manifest
from karma_electric.release.manifest import Artifact, read_release_manifest
from karma_electric.release.params import ReleaseParams
from karma_electric.release.rebuilt_files import Comparison, Line
from karma_electric.release.signature import PUBLIC_KEY_NAME
from karma_electric.release.verify import EVIDENCE_NAME, GATE_NAME, REPORT_NAME

P = TypeVar("P", bound=Parameters)
Report = Callable[[str], None]

ADDED_BY_PUBLISHING: Final = (PROVENANCE_NAME, YANKED_NAME, PUBLIC_KEY_NAME)
AXIS_NAME, PROJECTIONS_NAME = "axis.safetensors", "projections.safetensors"


@dataclass(frozen=True)
class Rebuild:
    """What was found. `elsewhere` says what is another here than where the release was built; empty: bytes must be
    equal. `taken` are the files that nothing of the repo makes again."""

    elsewhere: tuple[str, ...]
    lines: tuple[Line, ...]
    taken: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        return [line.path for line in self.lines if line.result == "differs"]


@dataclass
class _Rebuilding:
    folder: Path  # the release
    scratch: Path
    recipe: dict[str, Any]
    identity: dict[str, Any]
    compared: Comparison
    report: Report
    adapters: dict[str, Path] = field(default_factory=dict)  # of the sets, as they can be merged into the base here

    def section(self, name: str, model: type[P]) -> P:
        return parse_parameters(self.recipe.get(name), model, where=f"{self.folder / 'reproduce.json'}: recipe.{name}")

    def new(self, name: str) -> Path:
        """A place in the scratch folder for what is made again."""
        path = self.scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def compare_json(self, name: str, value: dict[str, Any]) -> None:
        write_text(self.new(name), readable_json(value))
        self.compared.text(name, self.scratch / name)


def rebuild_release(folder: Path, *, base: Path | None = None, report: Report) -> Rebuild:
    """Make a release again, and compare; `folder` was found whole before. `base` is the folder of a base model that is
    no package and no repo of the hub.

    Raises IntegrityError where something can't be made again from what is there, InputError for a base that has to be
    given, SetupError for a missing package, network or room on the disk. What differs is in the result.
    """
    reproduce = read_json_object(folder / "reproduce.json")
    elsewhere = environment_differences(folder, reproduce)
    try:
        with tempfile.TemporaryDirectory(prefix="karma-rebuild-") as place:
            compared = Comparison(folder, exact=not elsewhere)
            identity = read_release_manifest(folder)["identity"]
            work = _Rebuilding(folder, Path(place), reproduce["recipe"], identity, compared, report)
            _base(work, base)
            try:
                _weights(work)
                _axis(work)
                _gate(work)
                taken = _release(work, reproduce)
            except InputError as error:
                raise IntegrityError(f"{folder}: cannot be made again: {error}") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise SetupError(
            f"{tempfile.gettempdir()}: full; the base, the merged weights and their F16 form need room: set TMPDIR"
        ) from None
    return Rebuild(tuple(elsewhere), tuple(compared.lines), taken)


def _base(work: _Rebuilding, given: Path | None) -> None:
    """The base by its pin; and the adapters, of which each names the base that it was trained on."""
    found = work.recipe.get("base")
    if isinstance(found, dict) and found.get("source") == "folder":
        if given is None:
            raise InputError(
                f"--base is missing: the base of this release is the folder {found.get('path')!r}; say where"
            )
        found = {**found, "path": str(given)}
    elif given is not None:
        raise InputError("--base goes with a base that is a folder; this release names where its base is from")
    where = f"{work.folder / 'reproduce.json'}: recipe"
    params = parse_parameters({"base": found}, BaseSection, where=where).base
    make_base(params, work.new("base"), report=work.report)
    made = sha256_file(work.scratch / "base" / MANIFEST_NAME)
    interpolate = work.section("interpolate", InterpolateParams)
    for name in (interpolate.from_, interpolate.to):
        work.adapters[name] = work.folder / "adapters" / name
        recorded = str(read_manifest(work.adapters[name])["identity"].get("base"))
        if recorded != made:
            work.compared.made("base", recorded, made, f"that of adapters/{name}")
            work.adapters[name] = _on_this_base(work, name, made)
    if not work.compared.has("base"):
        work.compared.made("base", made, made, "that of the adapters")


def _on_this_base(work: _Rebuilding, name: str, base_sha256: str) -> Path:
    """A copy of an adapter that can be merged into the base here, so that the GGUF files show what that changes."""
    published, copy = work.folder / "adapters" / name, work.new(f"rebased/{name}")
    shutil.copytree(published, copy)
    identity = read_manifest(published)["identity"]
    write_manifest(copy, {**identity, "base": base_sha256})
    work.compared.renamed(copy / MANIFEST_NAME, published / MANIFEST_NAME)
    return copy


def _weights(work: _Rebuilding) -> None:
    """Blend, merge, and the GGUF files."""
    interpolate, release = work.section("interpolate", InterpolateParams), work.section("release", ReleaseParams)
    quantize = work.section("quantize", QuantizeParams)
    work.report("blending the adapters")
    blend = work.new("adapters/blend")
    first, second = work.adapters[interpolate.from_], work.adapters[interpolate.to]
    metrics = blend_adapters(first, second, blend, params=interpolate)
    work.compared.adapter("adapters/blend", blend)
    work.compare_json("metrics/interpolate.json", metrics)
    merged = work.new("merged")
    metrics = merge_adapter(work.scratch / "base", blend, merged, report=work.report)
    recorded = str(work.identity.get("merged_manifest_sha256"))
    work.compared.made("merged", recorded, sha256_file(merged / MANIFEST_NAME), f"what {MANIFEST_NAME} names")
    work.compare_json("metrics/merge.json", metrics)
    for kind in quantize.types:
        name = str(work.identity.get("gguf", {}).get(kind))
        if name not in work.compared.published:
            raise IntegrityError(f"{work.folder / MANIFEST_NAME}: names no GGUF file of the type {kind}")
        made = work.new(f"gguf/{name}")
        check = make_gguf(merged, made, gguf_type=kind, name=f"{release.name}-{release.version}", report=work.report)
        work.compared.gguf(name, made)
        made.unlink()
        work.compare_json(f"metrics/quantize/{kind}.json", check.as_dict())


def _axis(work: _Rebuilding) -> None:
    """Thresholds from the stored projections. The prompts are those that axis_stats.json holds: the axis names their
    hashes."""
    work.report("calibrating the thresholds")
    stats = f"axis_stats_{work.identity.get('version')}.json"
    held = read_json_object(work.folder / stats)
    gguf_name = str(work.identity.get("axis"))
    torch_name = f"{Path(gguf_name).stem}.pt"
    persona, generic = work.new("persona.txt"), work.new("generic.jsonl")
    persona.write_text(str(held.get("bodhisattva_prompt")), "utf-8")
    texts = held.get("generic_prompts")
    rows = [{"id": str(number), "prompt": text} for number, text in enumerate(texts if isinstance(texts, list) else [])]
    generic.write_bytes(write_json_lines(rows))
    metrics = calibrate(
        work.folder / AXIS_NAME,
        work.folder / PROJECTIONS_NAME,
        output_gguf=work.new("axis/made.gguf"),
        output_pt=work.new("axis/made.pt"),
        output_stats=work.new("axis/made.json"),
        plot_histogram=work.new("axis/plot.json"),
        params=work.section("acap", AcapParams),
        release_date=work.section("release", ReleaseParams).date.isoformat(),
        persona_prompt=persona,
        generic_prompts=generic,
    )
    work.compared.gguf(gguf_name, work.scratch / "axis/made.gguf")
    work.compared.torch_axis(torch_name, work.scratch / "axis/made.pt")
    work.compared.text(stats, work.scratch / "axis/made.json")
    work.compare_json("metrics/acap.json", metrics)


def _gate(work: _Rebuilding) -> None:
    work.report("judging again from the evidence")
    run = replay_gate(work.folder / EVIDENCE_NAME)
    work.compare_json(GATE_NAME, run.metrics)
    write_text(work.new(REPORT_NAME), gate_report(run.result))
    work.compared.text(REPORT_NAME, work.scratch / REPORT_NAME)


def _release(work: _Rebuilding, reproduce: dict[str, Any]) -> tuple[str, ...]:
    """Everything that the stage `release` writes, and the card and manifest that publishing finished. The result: the
    files that were taken as they are."""
    work.report("writing the card")
    made, constraints = work.new("release"), work.new("constraints.txt")
    packages = reproduce.get("packages")
    pins = packages if isinstance(packages, dict) else {}
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()), "utf-8")
    build_release(_inputs(work, constraints), made, params=work.section("release", ReleaseParams))
    manifest = read_release_manifest(made)
    added = [name for name in ADDED_BY_PUBLISHING if name in work.compared.published]
    for name in added:
        (made / name).write_bytes((work.folder / name).read_bytes())
    artifacts = [Artifact(**entry) for entry in manifest["files"] if entry["path"] != CARD_NAME]
    artifacts += [
        Artifact(name, (made / name).stat().st_size, sha256_file(made / name), PUBLISH_STAGE) for name in added
    ]
    write_card_and_manifest(made, artifacts)
    taken = [*_roots(work), *added]
    for name in paths_below(made):
        if name not in taken and not work.compared.has(name):
            work.compared.text(name, made / name, python=str(reproduce.get("python")))
    return work.compared.finish(taken)


def _inputs(work: _Rebuilding, constraints: Path) -> ReleaseInputs:
    """What the release was made of, as it is published: what was made again from other files was compared already."""
    folder, identity = work.folder, work.identity
    interpolate, quantize = work.section("interpolate", InterpolateParams), work.section("quantize", QuantizeParams)
    trained = (interpolate.from_, interpolate.to)
    axis = str(identity.get("axis"))
    sets = work.recipe.get("sets")
    sources = {str(name): str(source) for name, source in sets.items()} if isinstance(sets, dict) else {}
    return ReleaseInputs(
        base_manifest=work.scratch / "base" / MANIFEST_NAME,
        merged=work.scratch / "merged",
        adapters={name: folder / "adapters" / name for name in (*trained, "blend")},
        gguf_files={kind: folder / identity["gguf"][kind] for kind in quantize.types},
        judged_type=quantize.judged,
        axis_files=tuple(folder / name for name in (axis, f"{Path(axis).stem}.pt", AXIS_NAME, PROJECTIONS_NAME)),
        axis_stats=folder / f"axis_stats_{identity.get('version')}.json",
        set_manifests={name: folder / f"sets/{name}.manifest.json" for name in sources},
        set_sources=sources,
        train_metrics={name: folder / f"metrics/train/{name}.json" for name in trained},
        quantize_metrics={kind: folder / f"metrics/quantize/{kind}.json" for kind in quantize.types},
        metrics={
            **{name: folder / f"metrics/{name}.json" for name in ("interpolate", "merge", "acap")},
            "gate": folder / GATE_NAME,
        },
        gate_report=folder / REPORT_NAME,
        evidence=folder / EVIDENCE_NAME,
        versions=folder / "versions.yaml",
        persona_prompt=work.scratch / "persona.txt",
        constraints=constraints,
        recipe=work.recipe,
    )


def _roots(work: _Rebuilding) -> list[str]:
    """The files that nothing in the repo makes."""
    interpolate = work.section("interpolate", InterpolateParams)
    trained = (interpolate.from_, interpolate.to)
    folders = [f"adapters/{name}/" for name in trained]
    files = [AXIS_NAME, PROJECTIONS_NAME, EVIDENCE_NAME, "versions.yaml"]
    files += [f"metrics/train/{name}.json" for name in trained]
    files += [f"sets/{name}.manifest.json" for name in work.recipe["sets"]]
    return [path for path in work.compared.published if path in files or any(path.startswith(name) for name in folders)]
