"""Turn measured projections into the thresholds of a cap, and write every form of the axis."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from karma_electric.axis.gguf_writer import write_axis_gguf
from karma_electric.axis.measurements import (
    AnswerProjections,
    AxisMeasurement,
    Projections,
    read_axis,
    read_projections,
)
from karma_electric.axis.params import AcapParams
from karma_electric.axis.prompts import KINDS, read_generic_prompts, texts_sha256
from karma_electric.axis.thresholds import (
    CONFIDENCE,
    FiringRate,
    capping_layers,
    choose_taus,
    firing_rate,
    fit_tokens,
    rule_name,
    rule_value,
    summary,
)
from karma_electric.canonical import canonical_json, readable_json, rounded
from karma_electric.errors import IntegrityError
from karma_electric.integrity import sha256_file, write_bytes, write_text
from karma_electric.prompts import read_prompt

HISTOGRAM_BINS = 32
ALL = "all"  # beside the kinds: all of them together


@dataclass(frozen=True)
class _Calibration:
    """What was found: ceilings, and how often they act on the held-out split, by kind and over all."""

    params: AcapParams
    measured: AxisMeasurement
    axis_sha256: str
    projections: Projections
    taus: Mapping[int, float]
    rates: Mapping[str, FiringRate]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self.taus))


def calibrate(
    axis: Path,
    projections: Path,
    *,
    output_gguf: Path,
    output_pt: Path,
    output_stats: Path,
    plot_histogram: Path,
    params: AcapParams,
    release_date: str,
    persona_prompt: Path,
    generic_prompts: Path,
) -> dict[str, float]:
    """Choose a ceiling for each capping layer and write the axis GGUF, the `.pt`, axis_stats.json and a histogram.

    The rules are those of `thresholds.choose_taus`, fitted on the split `fit`; firing rates are measured on `held-out`.
    The `.pt` holds `axis` (n_layers, hidden_size) float32, `thresholds` {layer: tau}, `alpha` and `identity`, and loads
    with weights_only.

    Returns metrics: tau by layer, firing rate with its interval by kind. Raises IntegrityError where axis, projections
    and prompts do not belong together, InputError for layers that the model lacks.
    """
    measured = read_axis(axis)
    found = read_projections(projections, axis, measured.n_layers)
    prompts = _check_prompts(axis, measured, persona_prompt, generic_prompts)
    layers = capping_layers(params, measured.n_layers, measured.effect_sizes)
    taus = choose_taus(params, layers, fit_tokens(params, found))
    held_out = {str(kind): found[kind, "held-out"] for kind in KINDS}
    held_out[ALL] = _together(list(held_out.values()))
    rates = {
        kind: firing_rate(tokens, taus, where=f"{projections}: {kind}, held-out") for kind, tokens in held_out.items()
    }
    result = _Calibration(params, measured, sha256_file(axis), found, taus, rates)
    _write_gguf(output_gguf, result)
    write_bytes(output_pt, _torch_file(result))
    write_text(output_stats, readable_json(_stats(result, prompts, release_date)))
    write_text(plot_histogram, _histogram(result))
    return _metrics(result)


def _check_prompts(
    axis: Path, measured: AxisMeasurement, persona_prompt: Path, generic_prompts: Path
) -> dict[str, object]:
    """The texts for the record, after they were found to be those that the axis was measured with."""
    persona = read_prompt(persona_prompt)
    generic = [prompt.text for prompt in read_generic_prompts(generic_prompts)]
    recorded = measured.identity.get("prompts")
    for name, path, texts in (("persona", persona_prompt, [persona]), ("generic", generic_prompts, generic)):
        if not isinstance(recorded, dict) or recorded.get(name) != texts_sha256(texts):
            raise IntegrityError(f"{axis}: was measured with another {name} prompt than {path}; extract it again")
    return {"bodhisattva_prompt": persona, "generic_prompts": generic}


def _together(sets: list[AnswerProjections]) -> AnswerProjections:
    starts = np.cumsum([0, *(each.n_answers for each in sets)])
    return AnswerProjections(
        values=np.concatenate([each.values for each in sets]),
        answers=np.concatenate(
            [each.answers + np.int32(start) for each, start in zip(sets, starts[:-1], strict=True)], dtype=np.int32
        ),
        n_answers=int(starts[-1]),
    )


def _identity(result: _Calibration) -> dict[str, str | float]:
    """What every form of the axis says of itself."""
    known = result.measured.identity
    return {
        "model": str(known.get("model")),
        "model_sha256": str(known.get("model_sha256")),
        "axis_sha256": result.axis_sha256,
        "rule": rule_name(result.params),
        "rule_value": rule_value(result.params),
        "firing_rate": rounded(result.rates[ALL].rate),
    }


def _write_gguf(path: Path, result: _Calibration) -> None:
    identity = _identity(result)
    identity |= {f"firing_rate.{kind}": rounded(result.rates[kind].rate) for kind in KINDS}
    write_axis_gguf(
        path,
        {layer: result.measured.axis[layer] for layer in result.layers},
        result.taus,
        alpha=result.params.alpha,
        model_type=str(result.measured.identity.get("model_type")),
        identity=identity,
    )


def _torch_file(result: _Calibration) -> bytes:
    stream = io.BytesIO()  # torch.save would store the name of a file
    content = {
        "axis": torch.from_numpy(result.measured.axis),
        "thresholds": dict(result.taus),
        "alpha": result.params.alpha,
        "identity": _identity(result),
    }
    torch.save(content, stream)
    return stream.getvalue()


def _stats(result: _Calibration, prompts: Mapping[str, object], release_date: str) -> dict[str, Any]:
    params, measured = result.params, result.measured
    tokens = fit_tokens(params, result.projections)
    norms = np.linalg.norm(measured.axis.astype(np.float64), axis=1)
    return {
        "model": measured.identity.get("model"),
        "n_samples": measured.identity.get("n_samples"),
        "n_layers": measured.n_layers,
        "hidden_size": int(measured.axis.shape[1]),
        "capping_layers": list(result.layers),
        "threshold_percentile": params.percentile if rule_name(params) == "percentile" else None,
        "axis_norms": _by_layer(norms),
        "axis_standard_errors": _by_layer(measured.standard_error),
        "thresholds": {str(layer): {"tau": result.taus[layer], **summary(tokens[:, layer])} for layer in result.layers},
        "rule": rule_name(params),
        "rule_value": rule_value(params),
        "alpha": params.alpha,
        "n_fit_tokens": len(tokens),
        "firing_rate_confidence": CONFIDENCE,
        "firing_rates": {kind: _rounded_rate(rate) for kind, rate in result.rates.items()},
        **prompts,
        "model_sha256": measured.identity.get("model_sha256"),
        "axis_sha256": result.axis_sha256,
        "timestamp": release_date,
    }


def _by_layer(values: Any) -> dict[str, float]:
    return {str(layer): rounded(float(value)) for layer, value in enumerate(values)}


def _rounded_rate(rate: FiringRate) -> dict[str, float]:
    return {name: rounded(value) if isinstance(value, float) else value for name, value in asdict(rate).items()}


def _histogram(result: _Calibration) -> str:
    """Tokens of both splits by projection, in the middle capping layer; `bin` is the middle of a bin."""
    layer = result.layers[len(result.layers) // 2]
    columns = {
        kind: np.concatenate([result.projections[kind, split].values[:, layer] for split in ("fit", "held-out")])
        for kind in KINDS
    }
    edges = np.histogram_bin_edges(np.concatenate(list(columns.values())).astype(np.float64), HISTOGRAM_BINS)
    rows = [
        canonical_json({"kind": kind, "bin": rounded(float(middle)), "count": int(count)})
        for kind, column in columns.items()
        for middle, count in zip((edges[1:] + edges[:-1]) / 2, np.histogram(column, edges)[0], strict=True)
    ]
    return "[\n" + ",\n".join(rows) + "\n]\n"


def _metrics(result: _Calibration) -> dict[str, float]:
    metrics: dict[str, float] = {"alpha": result.params.alpha}
    metrics |= {"first_layer": result.layers[0], "last_layer": result.layers[-1]}
    metrics |= {f"tau_{layer}": rounded(tau) for layer, tau in result.taus.items()}
    for kind, rate in result.rates.items():
        fields = _rounded_rate(rate)
        metrics[f"firing_rate_{kind}"] = fields.pop("rate")
        metrics |= {f"firing_rate_{kind}_{name}": value for name, value in fields.items()}
    return metrics
