"""What an axis file holds, for people, and whether a careful loader takes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.axis.loading import AxisContent, checked_threshold, load_cap, read_content
from karma_electric.integrity import sha256_file


@dataclass(frozen=True)
class AxisLayer:
    """One layer of an axis file."""

    layer: int
    norm: float  # of the direction as it is stored, in activation units
    tau: float | None  # None: the file has no thresholds


@dataclass(frozen=True)
class AxisDescription:
    """An axis file."""

    path: Path
    sha256: str
    hidden_size: int
    alpha: float
    layers: tuple[AxisLayer, ...]
    identity: Mapping[str, Any]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "hidden_size": self.hidden_size,
            "alpha": self.alpha,
            "layers": [{"layer": each.layer, "norm": each.norm, "tau": each.tau} for each in self.layers],
            "identity": dict(self.identity),
            "notes": list(self.notes),
        }


def describe(path: Path, *, stats: Path | None = None) -> AxisDescription:
    """Read an axis file of any form (karma_electric/axis/loading.py). Raises as loading does."""
    return _description(path, read_content(path, need_thresholds=False, stats=stats))


def lint(
    path: Path, *, model: Path | None = None, threshold: float | None = None, force: bool = False
) -> AxisDescription:
    """Check an axis file as a careful loader does, for `model` where one is named. Raises for any fault.

    An axis GGUF must hold nothing but `direction.<layer>`, one-dimensional F32 of one length, layer at least 1, finite
    and not zero, and a finite float32 `acap.threshold.<layer>` for each. Without thresholds a `threshold` is needed.
    With a model: width and layers fit, and the weights are those that the axis was made from.
    """
    checked_threshold(threshold)
    if model is not None:
        load_cap(path, model, threshold=threshold, force=force)
    return _description(path, read_content(path, need_thresholds=threshold is None))


def _description(path: Path, content: AxisContent) -> AxisDescription:
    return AxisDescription(
        path=path,
        sha256=sha256_file(path),
        hidden_size=len(next(iter(content.directions.values()))),
        alpha=content.alpha,
        layers=tuple(
            AxisLayer(layer, content.norms[layer], content.taus.get(layer)) for layer in sorted(content.directions)
        ),
        identity=content.identity,
        notes=tuple(content.notes),
    )
