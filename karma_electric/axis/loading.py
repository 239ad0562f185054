"""Loads what caps a model, from any form of axis file, and refuses what is not for that model.

    *.gguf          `direction.<layer>`, with thresholds or without (files.py)
    *.pt, *.pth     (n_layers, hidden_size) float32 or bfloat16, alone or as `axis` in a dict with `thresholds`
    *.safetensors   what the stage extract-axis writes; it has no thresholds

A `.pt` without thresholds takes those of an axis_stats.json: the one that is named, or `axis_stats.json` or
`axis_stats_<rest>.json` beside `..._axis_<rest>.pt`. A threshold T that is given wins over all of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from karma_electric.axis.files import DEFAULT_ALPHA, load_axis
from karma_electric.axis.model_facts import ModelFacts, model_facts
from karma_electric.capping.formula import Cap, unit
from karma_electric.errors import InputError, IntegrityError, shown
from karma_electric.integrity import sha256_file

Direction = NDArray[np.float32]


@dataclass(frozen=True)
class LoadedAxis:
    """A cap for one model, what it is from, and what a person must be told about it."""

    cap: Cap
    path: Path
    sha256: str  # of the axis file
    identity: Mapping[str, Any]  # what the file says of itself: model, model_sha256, rule, rule_value, firing_rate, ...
    overrides: Mapping[str, Any]  # what was asked for instead of the file's own: threshold, layers, alpha
    notes: tuple[str, ...] = ()  # one line each

    @property
    def firing_rate(self) -> float | None:
        """As calibrated; None where the file does not say, or where something was overridden."""
        rate = self.identity.get("firing_rate")
        return float(rate) if isinstance(rate, float) and not self.overrides else None


@dataclass
class AxisContent:
    """An axis file before it is fitted to a model."""

    directions: Mapping[int, Direction]  # layer -> (hidden_size,), norm 1
    norms: Mapping[int, float]
    taus: Mapping[int, float]  # empty: the file has none
    alpha: float
    identity: Mapping[str, Any]
    n_layers: int | None  # of the model, where the file says so
    notes: list[str] = field(default_factory=list)


def load_cap(
    path: Path,
    model: Path | ModelFacts,
    *,
    threshold: float | None = None,
    layers: tuple[int, int] | None = None,
    alpha: float | None = None,
    stats: Path | None = None,
    force: bool = False,
) -> LoadedAxis:
    """The cap that the axis file `path` makes for `model`, a GGUF file or a folder.

    `threshold` T > 0 is the global form: tau = -T in every capped layer, whatever the file says, and a note says so.
    `layers` (first, last) narrows what is capped. An axis that says which weights it was made from is refused on a
    model that was made from others, or does not say; `force` turns this into a note. Width and depth must fit in any
    case.

    Raises InputError for a cap that cannot be, IntegrityError for a damaged file.
    """
    facts = model if isinstance(model, ModelFacts) else model_facts(model)
    checked_threshold(threshold)
    if alpha is not None and not 0 < alpha <= 1:
        raise InputError(f"alpha is {alpha}, expected 0 < alpha <= 1; 1 is the hard cap")
    content = read_content(path, need_thresholds=threshold is None, stats=stats)
    notes = [*content.notes, *_check_model(path, content, facts, force=force)]
    chosen = _choose_layers(path, content, facts, layers)
    if threshold is None:
        taus = {layer: content.taus[layer] for layer in chosen}
    else:
        taus = dict.fromkeys(chosen, -threshold)
        if content.taus:
            notes.append(f"the threshold {threshold:g} (tau = {-threshold:g}) replaces the file's own for each layer")
    effective = content.alpha if alpha is None else alpha
    overrides = {"threshold": threshold, "layers": list(layers) if layers else None, "alpha": alpha}
    return LoadedAxis(
        cap=Cap({layer: content.directions[layer] for layer in chosen}, taus, effective),
        path=path,
        sha256=sha256_file(path),
        identity=content.identity,
        overrides={name: value for name, value in overrides.items() if value is not None},
        notes=tuple(notes),
    )


def checked_threshold(threshold: float | None) -> None:
    """Refuse a global threshold that is not a finite number above 0."""
    if threshold is not None and not (math.isfinite(threshold) and threshold > 0):
        raise InputError(
            f"the threshold is {threshold:g}, expected a finite T > 0: it stands for the ceiling tau = -T in every "
            "capped layer; for a ceiling of 0 or above, give thresholds for each layer in the file"
        )


def read_content(path: Path, *, need_thresholds: bool = True, stats: Path | None = None) -> AxisContent:
    """What is in an axis file of any form."""
    suffix = path.suffix.lower()
    if stats is not None and suffix not in (".pt", ".pth"):
        raise InputError(f"{stats}: goes with a .pt axis; {path} is none")
    if suffix == ".gguf":
        found = load_axis(path, need_thresholds=need_thresholds)
        return AxisContent(found.directions, found.norms, found.taus, found.alpha, found.identity, None)
    if suffix in (".pt", ".pth"):
        from karma_electric.axis.torch_files import read_torch_axis

        content = read_torch_axis(path, stats=stats)
    elif suffix == ".safetensors":
        from karma_electric.axis.measurements import read_axis

        measured = read_axis(path)
        content = content_of(path, measured.axis, {}, measured.identity)
    else:
        raise InputError(f"{path}: expected an axis file: .gguf, .pt or .safetensors")
    if need_thresholds and not content.taus:
        raise InputError(f"{path}: has no thresholds; give one with it (--acap-threshold T), or an axis_stats.json")
    return content


def content_of(
    path: Path,
    axis: Direction,
    taus: Mapping[int, float],
    identity: Mapping[str, Any],
    alpha: float = DEFAULT_ALPHA,
) -> AxisContent:
    """Of a whole axis (n_layers, hidden_size). Raises IntegrityError for a layer in `taus` that has no direction."""
    norms = np.linalg.norm(axis.astype(np.float64), axis=1)
    directions = {}
    for layer in sorted(taus) or range(1, len(axis)):
        try:
            directions[layer] = unit(axis[layer])
        except InputError as error:
            raise IntegrityError(f"{path}: layer {layer}: {error}") from error
    return AxisContent(
        directions, {layer: float(norms[layer]) for layer in directions}, taus, alpha, identity, len(axis)
    )


def _check_model(path: Path, content: AxisContent, facts: ModelFacts, *, force: bool) -> Iterable[str]:
    """Refuse the axis of another model; notes about what was forced or cannot be known."""
    hidden_size = len(next(iter(content.directions.values())))
    if hidden_size != facts.hidden_size or content.n_layers not in (None, facts.blocks):
        depth = "" if content.n_layers is None else f" of {content.n_layers} layers"
        raise InputError(
            f"{path}: is for a model{depth} with hidden size {hidden_size}, {facts.where} has {facts.blocks} layers "
            f"and hidden size {facts.hidden_size}; use the axis of this model"
        )
    made_from = content.identity.get("model_sha256")
    if not isinstance(made_from, str):
        yield f"{path} does not say which weights it was made from"
        return
    if made_from == facts.source_sha256:
        return
    found = "does not say what it was made from" if facts.source_sha256 is None else f"is {facts.source_sha256[:12]}…"
    fault = f"{path}: was made from the weights {made_from[:12]}…, {facts.where} {found}"
    if not force:
        raise InputError(f"{fault}; use the axis of this model, or --force")
    yield f"forced: {fault}"


def _choose_layers(
    path: Path, content: AxisContent, facts: ModelFacts, layers: tuple[int, int] | None
) -> tuple[int, ...]:
    """The layers to cap. Without a range: those of the file, or the default depth where it holds every layer."""
    known = sorted(content.directions)
    if layers is None and content.n_layers is not None and not content.taus:
        from karma_electric.axis.thresholds import default_layers  # loads torch, which a GGUF does not need

        layers = default_layers(facts.blocks)
    first, last = layers or (known[0], known[-1])
    if not 1 <= first <= last < facts.blocks:
        raise InputError(
            f"{path}: layers {first} to {last}, expected first to last within 1 to {facts.blocks - 1} of "
            f"{facts.where}; block 0 cannot be capped"
        )
    chosen = tuple(layer for layer in known if first <= layer <= last)
    if layers is not None and (missing := sorted(set(range(first, last + 1)) - set(known))):
        raise InputError(
            f"{path}: has no direction{' with a threshold' if content.taus else ''} for layer {missing[0]}; it has "
            f"{shown(known)}"
        )
    return chosen
