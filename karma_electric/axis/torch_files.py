"""Axis files of PyTorch: read with weights_only, bounded, and checked before a number of them is used."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from karma_electric.axis.files import DEFAULT_ALPHA, MAX_AXIS_BYTES, MAX_LAYER
from karma_electric.axis.loading import AxisContent, content_of
from karma_electric.canonical import read_json_object
from karma_electric.errors import InputError, IntegrityError, shown

_AXIS_DTYPES: Final = (torch.float32, torch.bfloat16)
_LAYER = re.compile(r"0|[1-9][0-9]{0,3}", re.ASCII)
IDENTITY_KEYS: Final = ("model", "model_sha256", "axis_sha256", "rule", "rule_value", "firing_rate")


def read_torch_axis(path: Path, *, stats: Path | None = None) -> AxisContent:
    """A tensor (n_layers, hidden_size), or a dict with it as `axis`, `thresholds` {layer: tau}, `alpha` and `identity`.

    Thresholds of the file win over those of `stats`, an axis_stats.json; without either, `taus` is empty.
    Raises IntegrityError for a file that is damaged or of another form, InputError where there is none.
    """
    found = _load(path)
    record: Mapping[str, Any] = {}
    if isinstance(found, dict):
        record, found = found, found.get("axis")
    axis = _axis(path, found)
    thresholds = _thresholds(record.get("thresholds", {}), f"{path}: thresholds")
    identity, alpha, notes = _identity(record), _alpha(path, record), list[str]()
    beside = stats or (None if thresholds else _stats_beside(path))
    if beside is not None:
        theirs = read_json_object(beside)
        _check_sizes(beside, theirs, axis, path)
        if thresholds:
            notes.append(f"the thresholds in {path} stand, not those of {beside}")
        else:
            thresholds = _thresholds(theirs.get("thresholds", {}), f"{beside}: thresholds")
            alpha = _alpha(beside, theirs)
            notes.append(f"thresholds from {beside}")
        identity = _identity(theirs) | identity
    if thresholds and not 1 <= min(thresholds) <= max(thresholds) < len(axis):
        raise IntegrityError(
            f"{path}: thresholds for {shown(sorted(thresholds))}, expected layers 1 to {len(axis) - 1}"
        )
    content = content_of(path, axis, thresholds, identity, alpha)
    content.notes.extend(notes)
    return content


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says of the axis: a dict `identity`, or the keys of axis_stats.json."""
    inner = record.get("identity")
    found = {**record, **inner} if isinstance(inner, dict) else record
    return {key: found[key] for key in IDENTITY_KEYS if isinstance(found.get(key), str | int | float)}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an axis")
    if (size := path.stat().st_size) > MAX_AXIS_BYTES:
        raise InputError(f"{path}: {size} bytes; expected an axis file of at most {MAX_AXIS_BYTES}")
    try:
        _refuse_inflation(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise IntegrityError(f"{path}: is no file of tensors alone ({reason}); fetch or extract it again") from error
    except (zipfile.BadZipFile, IndexError, OSError, OverflowError, UnicodeDecodeError, NotImplementedError) as error:
        raise IntegrityError(f"{path}: is damaged ({error}); fetch or extract it again") from error


def _refuse_inflation(path: Path) -> None:
    """torch.save stores without compression; a compressed member could take any amount of memory."""
    if not zipfile.is_zipfile(path):
        raise IntegrityError(f"{path}: is no file of torch.save (a zip archive); save it again")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > MAX_AXIS_BYTES or len(members) > 1000:
        raise IntegrityError(f"{path}: unpacks to more than {MAX_AXIS_BYTES} bytes; expected an axis file")


def _axis(path: Path, found: object) -> NDArray[np.float32]:
    if not isinstance(found, torch.Tensor):
        raise IntegrityError(f"{path}: holds a {type(found).__name__}, expected a tensor, or a dict with one as `axis`")
    if (
        found.dim() != 2
        or found.dtype not in _AXIS_DTYPES
        or found.is_sparse
        or len(found) > MAX_LAYER
        or len(found) < 2
    ):
        raise IntegrityError(
            f"{path}: the axis is {found.dtype} of shape {tuple(found.shape)}, expected float32 or bfloat16 "
            "(n_layers, hidden_size)"
        )
    axis: NDArray[np.float32] = found.float().numpy()
    if not np.isfinite(axis).all():
        raise IntegrityError(f"{path}: the axis has a value that is not finite; extract it again")
    return axis


def _thresholds(found: object, where: str) -> dict[int, float]:
    """Layer -> tau, of {22: -1.5}, {"22": -1.5} or {"22": {"tau": -1.5, ...}}."""
    if not isinstance(found, dict):
        raise IntegrityError(f"{where}: {shown(found)}, expected {{layer: tau}}")
    taus: dict[int, float] = {}
    for key, value in found.items():
        tau = value.get("tau") if isinstance(value, dict) else value
        if not isinstance(key, int | str) or isinstance(key, bool) or not _LAYER.fullmatch(str(key)):
            raise IntegrityError(f"{where}: {shown(key)} is no layer")
        if isinstance(tau, bool) or not isinstance(tau, int | float) or not math.isfinite(tau) or int(key) in taus:
            raise IntegrityError(f"{where}.{key}: {shown(tau)}, expected one finite number for each layer")
        taus[int(key)] = float(tau)
    return dict(sorted(taus.items()))


def _stats_beside(path: Path) -> Path | None:
    candidates = [path.with_name("axis_stats.json")]
    if "_axis_" in path.stem:
        candidates.append(path.with_name(f"axis_stats_{path.stem.rpartition('_axis_')[2]}.json"))
    found = [candidate for candidate in candidates if candidate.is_file()]
    if len(found) > 1:
        raise InputError(f"{path}: {found[0].name} and {found[1].name} stand beside it; name one of them")
    return found[0] if found else None


def _check_sizes(beside: Path, record: Mapping[str, Any], axis: NDArray[np.float32], path: Path) -> None:
    for name, size in zip(("n_layers", "hidden_size"), axis.shape, strict=True):
        if name in record and record[name] != size:
            raise IntegrityError(
                f"{beside}: {name} is {shown(record[name])}, {path} has {size}; they do not go together"
            )


def _alpha(beside: Path, record: Mapping[str, Any]) -> float:
    alpha = record.get("alpha", DEFAULT_ALPHA)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha <= 1:
        raise IntegrityError(f"{beside}: alpha is {shown(alpha)}, expected a number above 0 and up to 1")
    return float(alpha)
