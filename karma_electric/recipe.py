"""The whole recipe: every section joined, and what must hold between sections."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from pydantic import Field, model_validator

from karma_electric.adapters.params import InterpolateParams
from karma_electric.axis.params import AcapParams, AxisParams
from karma_electric.base_model.params import BaseParams
from karma_electric.errors import InputError, shown
from karma_electric.gate.params import GateParams
from karma_electric.gguf_files.params import QuantizeParams
from karma_electric.parameters import Parameters, parse_parameters, read_yaml
from karma_electric.release.licenses import license_files
from karma_electric.release.params import ReleaseParams
from karma_electric.training.params import TrainParams
from karma_electric.training_db.params import ExportParams

# Names and paths of sets stand in the commands of dvc.yaml without quotes.
_SET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SET_SOURCE = re.compile(r"[A-Za-z0-9._/][A-Za-z0-9._/-]*")


class Recipe(Parameters):
    """Every section of `params.yaml`."""

    sets: dict[str, str] = Field(min_length=1, description="set name -> the database or the set that it is layered on")
    release: ReleaseParams
    base: BaseParams
    export: ExportParams
    train: TrainParams
    interpolate: InterpolateParams
    quantize: QuantizeParams
    axis: AxisParams
    acap: AcapParams
    gate: GateParams

    @model_validator(mode="after")
    def _names_refer_to_something(self) -> Recipe:
        for name in self.sets:
            self._check_set_source(name)
        for key, name in (("from", self.interpolate.from_), ("to", self.interpolate.to)):
            if name not in self.sets:
                raise ValueError(f"interpolate.{key}: found {name!r}, expected one of the sets {', '.join(self.sets)}")
        try:
            license_files(self.base.license, title=self.release.title, base_repo=self.base.repo)
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.acap.layer_choice == "effect-size" and not self.axis.effect_sizes:
            raise ValueError("acap.layer_choice: effect-size needs axis.effect_sizes: true, found false")
        types = self.quantize.types
        if len(set(types)) != len(types):
            raise ValueError(f"quantize.types: found {types}, expected each type once")
        if self.quantize.judged not in types:
            raise ValueError(f"quantize.judged: found {self.quantize.judged!r}, expected one of quantize.types {types}")
        return self

    def _check_set_source(self, name: str) -> None:
        """A set starts from a database (`.db`) or from another set's JSON lines, and the chain ends in a database."""
        if not _SET_NAME.fullmatch(name):
            raise ValueError(f"sets: found the name {shown(name)}, expected letters, digits, dots and dashes")
        if not _SET_SOURCE.fullmatch(self.sets[name]):
            raise ValueError(f"sets.{name}: found {shown(self.sets[name])}, expected a path without spaces and signs")
        seen = [name]
        source = PurePosixPath(self.sets[name])
        while source.suffix != ".db":
            parent = source.stem
            if source.suffix != ".jsonl" or parent not in self.sets:
                raise ValueError(
                    f"sets.{seen[-1]}: found {str(source)!r}, expected a .db file or the .jsonl of another set"
                )
            if parent in seen:
                raise ValueError(f"sets.{name}: the sets {' -> '.join([*seen, parent])} go in a circle")
            seen.append(parent)
            source = PurePosixPath(self.sets[parent])


def read_recipe(path: Path) -> Recipe:
    """The recipe at `path`. Raises InputError: one line with file and key, what was found, what was expected."""
    return parse_parameters(read_yaml(path), Recipe, where=str(path))
