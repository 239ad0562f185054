"""What commands that run a model have in common: which model answers, and what caps it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.output import say
from karma_electric.cli.paths import GRAPH, RECIPE
from karma_electric.errors import InputError

if TYPE_CHECKING:
    from karma_electric.axis.loading import LoadedAxis

Model = Annotated[
    Path | None,
    typer.Argument(help="A GGUF file; by default the one that this project built."),
]
ChatModel = Annotated[
    Path | None,
    typer.Argument(help="A GGUF file or a merged folder; by default the one that this project built."),
]
Acap = Annotated[Path | None, typer.Option("--acap", help="The axis file that caps; by default this project's.")]
Threshold = Annotated[
    float | None,
    typer.Option("--acap-threshold", "--threshold", help="T > 0: the ceiling tau = -T in every capped layer."),
]
Layers = Annotated[
    tuple[int, int] | None,
    typer.Option("--acap-layer-range", "--layers", help="First and last layer to cap, 0-based."),
]
Alpha = Annotated[float | None, typer.Option(help="1 is the hard cap, 0.5 the soft one; by default the file's.")]
Force = Annotated[bool, typer.Option("--force", help="Take the axis of another model.")]
ContextTokens = Annotated[int, typer.Option("--context", min=16, help="Tokens of one conversation, answer included.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of llama.cpp; by default one for each core.")]


@dataclass(frozen=True)
class CapFlags:
    """What was asked for on the command line."""

    acap: Path | None
    threshold: float | None
    layers: tuple[int, int] | None
    alpha: float | None
    force: bool

    def given(self) -> list[str]:
        """The flags that make sense with a cap only."""
        flags = {
            "--acap": self.acap is not None,
            "--acap-threshold": self.threshold is not None,
            "--acap-layer-range": self.layers is not None,
            "--alpha": self.alpha is not None,
            "--force": self.force,
        }
        return [flag for flag, given in flags.items() if given]


def find_model(model: Path | None) -> Path:
    """The model that is named, or the one that this project built."""
    if model is not None:
        return model
    built = _artifact("model", "name a model: a GGUF file, or for chat a merged folder")
    say(f"model: {built}")
    return built


def find_axis(acap: Path | None, *, or_else: str = "") -> Path:
    """The axis file that is named, or the one that this project built."""
    return acap or _artifact("axis", f"name an axis file: --acap FILE{or_else}")


def find_cap(model: Path, flags: CapFlags, *, capped: bool) -> LoadedAxis | None:
    """The cap for `model`, or None where none is wanted. Says what a person must know about it.

    Raises InputError for flags of a cap without one: it is never left out in silence.
    """
    if not capped:
        if given := flags.given():
            raise InputError(f"{given[0]} goes with a cap, and --uncapped asks for none; leave out one of them")
        say("uncapped")
        return None
    from karma_electric.axis.loading import load_cap

    path = find_axis(flags.acap, or_else="; or --uncapped for answers without a cap")
    loaded = load_cap(path, model, threshold=flags.threshold, layers=flags.layers, alpha=flags.alpha, force=flags.force)
    for note in loaded.notes:
        say(f"note: {note}")
    cap = loaded.cap
    say(f"capped by {path}: layers {cap.layers[0]} to {cap.layers[-1]}, alpha {cap.alpha:g}")
    return loaded


def _artifact(name: str, advice: str) -> Path:
    """The file that dvc.yaml names as this artifact, built."""
    if not GRAPH.is_file() or not RECIPE.is_file():
        raise InputError(f"there is no {GRAPH} here that names a built {name}; {advice}")
    from karma_electric.graph import read_artifacts
    from karma_electric.parameters import read_yaml

    path = read_artifacts(GRAPH, read_yaml(RECIPE)).get(name)
    if path is None:
        raise InputError(f"{GRAPH}: artifacts.{name} is missing; {advice}")
    if not path.exists():
        raise InputError(f"{path}: not built; run `dvc repro`, or {advice}")
    return path
