"""Two adapters become one: blend = (1 - alpha) x first + alpha x second, of the effective updates s x B A."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from karma_electric.adapters.algebra import (
    averaged_factors,
    cut_to_rank,
    factor_rule_error,
    frobenius_norm,
    inner_product,
    rounding_scale,
    weighted_sum,
)
from karma_electric.adapters.files import (
    Factors,
    LoraAdapter,
    LoraModule,
    read_adapter,
    refuse_overlap,
    write_adapter,
)
from karma_electric.adapters.params import InterpolateParams
from karma_electric.canonical import rounded
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import atomic_directory, write_manifest
from karma_electric.torch_threads import torch_threads

CHECKED_MODULES = 8
CHECK_TOLERANCE = 1e-6  # of |B| |A|; float32 rounds at 6e-8
NEGLIGIBLE_NORM = 1e-30  # float32 underflows below 1e-38

Report = Callable[[str], None]


@dataclass(frozen=True)
class _Blend:
    """What is to be computed: the inputs, the parameters, and the shape of every module of the result."""

    first: LoraAdapter
    second: LoraAdapter
    params: InterpolateParams
    modules: Mapping[str, LoraModule]

    def terms(self, name: str) -> list[tuple[float, Factors]]:
        """Weight and factors of module `name` for each adapter that has it."""
        weights = ((self.first, 1 - self.params.alpha), (self.second, self.params.alpha))
        return [(weight, adapter.load(name)) for adapter, weight in weights if name in adapter.modules]


@dataclass
class _Measurement:
    """Sums over modules, of squared Frobenius norms unless said."""

    first: float = 0.0
    second: float = 0.0
    inner: float = 0.0  # <first, second>
    blend: float = 0.0
    factor_error: float = 0.0
    cut: float = 0.0
    worst: tuple[float, str] = field(default=(-1.0, ""))  # relative error of the factor rule, module


def blend_adapters(
    first: Path, second: Path, output: Path, *, params: InterpolateParams, report: Report | None = None
) -> dict[str, Any]:
    """Write the blend of the adapter folders `first` and `second` to the folder `output`; return metrics.

    Methods: `exact` joins the ranks (float32, scaling 1); `factors` averages each factor alone, as the old releases
    did, which is not the blend; `svd` cuts the exact product to `params.rank`. The result is read back and compared on
    sampled modules. All norms are Frobenius norms over all modules; `factor_rule_*` say how far the factor rule would
    be from the blend, relative to the blend's norm, whatever the method.

    Raises InputError for adapters that were made on different bases or do not fit the method, IntegrityError for
    damaged files.
    """
    refuse_overlap(output, first, second)
    adapters = read_adapter(first), read_adapter(second)
    if adapters[0].base_sha256 != adapters[1].base_sha256:
        raise InputError(
            f"{first} was made on the base {adapters[0].base_sha256[:12]}…, {second} on "
            f"{adapters[1].base_sha256[:12]}…; a blend needs one base; train both on it"
        )
    obstacle = _factor_rule_obstacle(*adapters)
    if params.method == "factors" and obstacle:
        raise InputError(f"{second}: the method factors cannot blend it with {first}: {obstacle}; use exact")
    blend = _Blend(*adapters, params, _plan_modules(*adapters, params))
    with torch_threads(1), atomic_directory(output) as folder:
        measurement = _write_blend(blend, folder, with_factor_rule=obstacle is None, report=report)
        write_manifest(folder, _identity(blend))
        _check_blend(blend, folder)
    return _metrics(blend, measurement, obstacle)


def _factor_rule_obstacle(first: LoraAdapter, second: LoraAdapter) -> str | None:
    """Why the factor rule has no meaning for this pair, or None."""
    for name in sorted(first.modules.keys() | second.modules.keys()):
        left, right = first.modules.get(name), second.modules.get(name)
        if left is None or right is None:
            return f"{name} is in one adapter only"
        if left.rank != right.rank:
            return f"{name} has rank {left.rank} in one adapter and {right.rank} in the other"
        if left.alpha != right.alpha:
            return f"{name} has alpha {left.alpha:g} in one adapter and {right.alpha:g} in the other"
    return None


def _plan_modules(first: LoraAdapter, second: LoraAdapter, params: InterpolateParams) -> dict[str, LoraModule]:
    modules = {}
    for name in sorted(first.modules.keys() | second.modules.keys()):
        sides = [adapter.modules[name] for adapter in (first, second) if name in adapter.modules]
        shapes = {(side.out_features, side.in_features) for side in sides}
        if len(shapes) > 1:
            raise InputError(f"{second.folder}: {name}: the adapters have the shapes {sorted(shapes)}; expected one")
        out_features, in_features = shapes.pop()
        if params.method == "factors":
            rank, alpha = sides[0].rank, sides[0].alpha
        else:
            rank = sum(side.rank for side in sides)
            if params.method == "svd":
                rank = min(rank, params.rank or rank, out_features, in_features)
            alpha = float(rank)  # scaling 1
        modules[name] = LoraModule(name, rank, alpha, out_features, in_features)
    return modules


def _write_blend(blend: _Blend, folder: Path, *, with_factor_rule: bool, report: Report | None) -> _Measurement:
    sums = _Measurement()
    parents = (blend.first.config, blend.second.config)
    with write_adapter(folder, blend.modules, parents) as writer:
        for index, (name, module) in enumerate(blend.modules.items()):
            terms = blend.terms(name)
            _measure(sums, blend, name, terms, with_factor_rule=with_factor_rule)
            result = weighted_sum(terms)
            if blend.params.method == "factors":
                result = averaged_factors(terms[0][1], terms[1][1], blend.params.alpha)
            elif blend.params.method == "svd":
                result, cut = cut_to_rank(result, module.rank)
                sums.cut += cut**2
            writer.write(name, result.a, result.b)
            if report:
                report(f"module {index + 1} of {len(blend.modules)}: {name}")
    return sums


def _measure(
    sums: _Measurement, blend: _Blend, name: str, terms: list[tuple[float, Factors]], *, with_factor_rule: bool
) -> None:
    squares = [inner_product(factors, factors) for _, factors in terms]
    inner = inner_product(terms[0][1], terms[1][1]) if len(terms) == 2 else 0.0
    blended = sum(weight**2 * square for (weight, _), square in zip(terms, squares, strict=True))
    if len(terms) == 2:
        blended += 2 * terms[0][0] * terms[1][0] * inner
    sums.first += squares[0] if name in blend.first.modules else 0.0
    sums.second += squares[-1] if name in blend.second.modules else 0.0
    sums.inner += inner
    sums.blend += max(0.0, blended)
    if with_factor_rule:
        error = factor_rule_error(terms[0][1], terms[1][1], blend.params.alpha)
        sums.factor_error += error**2
        relative = _ratio(error, math.sqrt(max(0.0, blended)))
        sums.worst = max(sums.worst, (math.inf if relative is None else relative, name), key=lambda item: item[0])


def _ratio(part: float, whole: float) -> float | None:
    """part / whole; 0 for 0 / 0, None for a part of nothing."""
    if whole > 0:
        return part / whole
    return 0.0 if part == 0 else None


def _metrics(blend: _Blend, sums: _Measurement, obstacle: str | None) -> dict[str, Any]:
    blend_norm = math.sqrt(sums.blend)
    error = _ratio(math.sqrt(sums.factor_error), blend_norm)
    reason = obstacle or ("the blend is zero" if error is None else None)
    if reason is None and math.isinf(sums.worst[0]):
        reason = f"the blend of {sums.worst[1]} is zero"
    known = reason is None and error is not None
    cut = _ratio(math.sqrt(sums.cut), blend_norm) if blend.params.method == "svd" else None
    cosine = sums.inner / math.sqrt(sums.first * sums.second) if sums.first * sums.second > 0 else None
    return {
        "method": blend.params.method,
        "alpha": blend.params.alpha,
        "n_modules": len(blend.modules),
        "rank": max(module.rank for module in blend.modules.values()),
        "first_norm": rounded(math.sqrt(sums.first)),
        "second_norm": rounded(math.sqrt(sums.second)),
        "blend_norm": rounded(blend_norm),
        "cosine": None if cosine is None else rounded(cosine),
        "factor_rule_error": rounded(error) if known and error is not None else None,
        "factor_rule_max_error": rounded(sums.worst[0]) if known else None,
        "factor_rule_worst_module": sums.worst[1] if known else None,
        "factor_rule_unknown_because": reason,
        "cut_error": None if cut is None else rounded(cut),
    }


def _identity(blend: _Blend) -> dict[str, Any]:
    return {
        "kind": "blend",
        "method": blend.params.method,
        "alpha": blend.params.alpha,
        "rank": blend.params.rank,
        "from": blend.params.from_,
        "to": blend.params.to,
        "from_sha256": blend.first.manifest_sha256,
        "to_sha256": blend.second.manifest_sha256,
        "base": blend.first.base_sha256,
    }


def _check_blend(blend: _Blend, folder: Path) -> None:
    """Compare the files in `folder` with the inputs, on modules spread evenly over the model."""
    written = read_adapter(folder)
    if dict(written.modules) != dict(blend.modules):
        raise IntegrityError(f"{folder}: the blend that was written has other modules than planned; run it again")
    names = list(blend.modules)
    for name in names[:: max(1, len(names) // CHECKED_MODULES)]:
        terms = blend.terms(name)
        expected, distance = weighted_sum(terms), 0.0
        if blend.params.method == "factors":
            expected = averaged_factors(terms[0][1], terms[1][1], blend.params.alpha)
        elif blend.params.method == "svd":
            _, distance = cut_to_rank(expected, blend.modules[name].rank)  # no matrix of this rank is nearer
        found = written.load(name)
        difference = abs(frobenius_norm(weighted_sum([(1.0, found), (-1.0, expected)])) - distance)
        allowed = CHECK_TOLERANCE * (rounding_scale(expected) + rounding_scale(found)) + NEGLIGIBLE_NORM
        if not difference <= allowed:
            raise IntegrityError(
                f"{folder}: {name}: the update that was written is wrong by {difference:.3g}, allowed is "
                f"{allowed:.3g}; run it again, and check the disk"
            )
