"""Measure the persona axis of a model, and where its own answers lie on it.

The axis of layer i is mean(generic) - mean(persona) over the contrast prompts: the output of decoder block i (0-based)
at the last token of the chat prompt, the persona's system prompt against generic ones. It points AWAY from the persona.
After The Assistant Axis (arXiv 2601.10387), which averages over answer tokens instead: `axis.position: answer-mean`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from karma_electric.axis.effect_sizes import effect_sizes
from karma_electric.axis.measurements import (
    AnswerProjections,
    AxisMeasurement,
    Projections,
    write_axis,
    write_projections,
)
from karma_electric.axis.model import CPU_THREADS, LoadedModel, load_model, on_every_gpu, render
from karma_electric.axis.params import AxisParams
from karma_electric.axis.precision import float32_states
from karma_electric.axis.prompts import (
    KINDS,
    SPLITS,
    CalibrationPrompt,
    Prompt,
    read_calibration_prompts,
    read_contrast_prompts,
    read_first_user_turns,
    read_generic_prompts,
    sample_by_language,
    texts_sha256,
)
from karma_electric.axis.states import (
    answer_mean_states,
    answer_projections,
    greedy_answers,
    last_token_states,
    refuse_non_finite,
)
from karma_electric.canonical import rounded
from karma_electric.capping.formula import unit
from karma_electric.errors import InputError
from karma_electric.prompts import read_prompt
from karma_electric.torch_threads import torch_threads

Report = Callable[[str], None]

# The only way there was before there was a choice.
_FIRST_CHOICES = {"position": "last-prompt-token", "second_language_share": 0.0, "effect_sizes": False}


@dataclass(frozen=True)
class _Prompts:
    """Everything that is asked."""

    persona: str
    generic: list[Prompt]
    contrast: list[Prompt]
    calibration: list[CalibrationPrompt]

    def sha256s(self) -> dict[str, str]:
        return {
            "persona": texts_sha256([self.persona]),
            "generic": texts_sha256(prompt.text for prompt in self.generic),
            "contrast": texts_sha256(prompt.text for prompt in self.contrast),
        }

    def calibration_sha256(self) -> str:
        return texts_sha256(f"{prompt.kind}.{prompt.split}\n{prompt.text}" for prompt in self.calibration)


def extract_axis(
    model_folder: Path,
    *,
    contrast_prompts: Path | None,
    generic_prompts: Path,
    persona_prompt: Path,
    calibration_prompts: Path,
    training_set: Path | None,
    output_axis: Path,
    output_projections: Path,
    params: AxisParams,
    report: Report | None = None,
) -> dict[str, Any]:
    """Write the axis and the projections of generated answers (karma_electric/axis/measurements.py has the forms).

    The model runs in bf16, on CUDA where there is one; on a CPU the states of the contrast are float32
    (karma_electric/axis/precision.py). Sums are float64. `params.source` says which of
    `contrast_prompts` and `training_set` is read. The standard error of a layer is that of the mean, over prompts, of
    the paired difference (mean of the generic conditions minus persona) projected on the unit axis.

    The calibration prompts are answered greedily under the persona's system prompt. The projection of a generated token
    is that of the state at the position which holds it; the token that ends an answer, and what would come after it,
    does not count.

    Returns `layers`, rows of layer, norm and standard_error for a plot, and counts. Raises InputError for prompts that
    are wrong or too long, IntegrityError for a damaged model.
    """
    prompts = _read_prompts(
        contrast_prompts=contrast_prompts,
        generic_prompts=generic_prompts,
        persona_prompt=persona_prompt,
        calibration_prompts=calibration_prompts,
        training_set=training_set,
        params=params,
    )
    with torch_threads(CPU_THREADS):
        return _extract(model_folder, prompts, output_axis, output_projections, params, report)


def _extract(
    model_folder: Path,
    prompts: _Prompts,
    output_axis: Path,
    output_projections: Path,
    params: AxisParams,
    report: Report | None,
) -> dict[str, Any]:
    loaded = on_every_gpu(load_model(model_folder))
    _check_context(loaded, params)
    tell = report or (lambda _line: None)
    questions = [
        render(loaded, prompts.persona, prompt.text, most_tokens=params.max_prompt_tokens, where=prompt.where)
        for prompt in prompts.calibration
    ]
    systems = [prompts.persona, *(prompt.text for prompt in prompts.generic)]
    persona, differences = contrast_states(loaded, prompts.contrast, systems, params, tell)
    axis, standard_error = axis_with_error(differences)
    sizes = effect_sizes(persona.cpu().numpy(), differences.cpu().numpy()) if params.effect_sizes else None
    identity = {
        "model": loaded.name,
        "model_sha256": loaded.sha256,
        "model_type": loaded.model_type,
        "n_samples": len(prompts.contrast),
        "params": recorded(params),
        "prompts": prompts.sha256s(),
    }
    projections, counts = _measure_answers(loaded, questions, prompts.calibration, axis, params, tell)
    write_axis(output_axis, AxisMeasurement(axis, standard_error, identity, sizes))
    facts = {"model_sha256": loaded.sha256, "calibration_prompts": prompts.calibration_sha256()}
    write_projections(output_projections, projections, output_axis, facts)
    return {"layers": _plot_rows(axis, standard_error, sizes), "n_samples": len(prompts.contrast), **counts}


def measure_contrast(
    loaded: LoadedModel,
    contrast: Sequence[Prompt],
    systems: Sequence[str],
    params: AxisParams,
    tell: Report,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The axis (n_layers, hidden_size) and its standard error (n_layers,); systems[0] is the persona."""
    return axis_with_error(contrast_states(loaded, contrast, systems, params, tell)[1])


def contrast_states(
    loaded: LoadedModel,
    contrast: Sequence[Prompt],
    systems: Sequence[str],
    params: AxisParams,
    tell: Report,
) -> tuple[Tensor, Tensor]:
    """For each prompt the persona's states, and the mean of the generic ones minus these.

    Both (prompts, n_layers, hidden_size) float64, on the model's device; systems[0] is the persona.
    """
    sequences = [
        render(loaded, system, prompt.text, most_tokens=params.max_prompt_tokens, where=prompt.where)
        for prompt in contrast
        for system in systems
    ]
    n_conditions, done = len(systems), 0
    shape = (len(contrast), loaded.n_layers, loaded.hidden_size)
    persona = torch.zeros(shape, dtype=torch.float64, device=loaded.device)
    generic = torch.zeros_like(persona)
    with float32_states(loaded) as model:
        for rows, condition, states in _states(model, sequences, contrast, params):
            sums = persona if condition == 0 else generic
            sums[rows] += states.to(sums)
            done += len(rows)
            tell(f"contrast prompts: {done} of {len(sequences)}")
    differences = generic.div_(n_conditions - 1).sub_(persona)
    for measured in (persona, differences):
        refuse_non_finite(measured)
    return persona, differences


def _states(
    loaded: LoadedModel, sequences: Sequence[Sequence[int]], contrast: Sequence[Prompt], params: AxisParams
) -> Iterator[tuple[list[int], int, Tensor]]:
    """(rows of `contrast`, condition, states (rows, n_layers, hidden_size)), where `params.position` says.

    Of each prompt in `contrast` there are as many sequences as conditions, one after another. A batch is of one
    condition, whose sequences begin with the same system prompt.
    """
    n_conditions = len(sequences) // len(contrast)
    for condition in range(n_conditions):
        those = sequences[condition::n_conditions]
        if params.position == "last-prompt-token":
            found = last_token_states(loaded, those, params.batch_size)
        else:
            answers = greedy_answers(loaded, those, most_tokens=params.answer_tokens, batch_size=params.batch_size)
            _refuse_empty(answers, contrast)
            found = answer_mean_states(loaded, those, answers, params.batch_size)
        for rows, states in found:
            yield list(rows), condition, states


def _refuse_empty(answers: Sequence[Sequence[int]], contrast: Sequence[Prompt]) -> None:
    for answer, prompt in zip(answers, contrast, strict=True):
        if not answer:
            raise InputError(
                f"{prompt.where}: the model ends its answer at once, so it has no mean; remove the prompt, or set "
                "axis.position: last-prompt-token"
            )


def recorded(params: AxisParams) -> dict[str, Any]:
    """The parameters for the record. A choice that came later is named where it is not the first one, so that an axis
    that has not changed keeps its bytes."""
    first = _FIRST_CHOICES
    return {name: value for name, value in params.model_dump().items() if name not in first or value != first[name]}


def axis_with_error(differences: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean over prompts, and the standard error of its length.

    `differences` (prompts, n_layers, hidden_size), at least two prompts -> (n_layers, hidden_size), (n_layers,). The
    error of a layer is std(<d_p, v>, ddof=1) / sqrt(prompts) with v the unit mean; 0 where the mean is 0.
    """
    n_prompts = len(differences)
    if n_prompts < 2:
        raise InputError(f"{n_prompts} contrast prompts: a standard error needs two; add prompts or raise axis.samples")
    mean = differences.mean(dim=0)
    norms = torch.linalg.vector_norm(mean, dim=1, keepdim=True)
    directions = torch.where(norms > 0, mean / norms, 0.0)
    along = torch.einsum("plh,lh->pl", differences, directions)  # (prompts, n_layers)
    error = along.std(dim=0, correction=1) / n_prompts**0.5
    return mean.float().cpu().numpy(), error.float().cpu().numpy()


def _read_prompts(
    *,
    contrast_prompts: Path | None,
    generic_prompts: Path,
    persona_prompt: Path,
    calibration_prompts: Path,
    training_set: Path | None,
    params: AxisParams,
) -> _Prompts:
    source = contrast_prompts if params.source == "prompts" else training_set
    if source is None:
        raise InputError(f"axis.source is {params.source!r}, but no file for it was given; name one")
    candidates = read_contrast_prompts(source) if params.source == "prompts" else read_first_user_turns(source)
    persona, generic = read_prompt(persona_prompt), read_generic_prompts(generic_prompts)
    if persona in {prompt.text for prompt in generic}:
        raise InputError(f"{generic_prompts}: holds the text of {persona_prompt}; a contrast needs other prompts")
    return _Prompts(
        persona=persona,
        generic=generic,
        contrast=sample_by_language(candidates, params.samples, params.seed, params.second_language_share),
        calibration=read_calibration_prompts(calibration_prompts),
    )


def _check_context(loaded: LoadedModel, params: AxisParams) -> None:
    needed = params.max_prompt_tokens + params.answer_tokens
    if loaded.context_tokens is not None and needed > loaded.context_tokens:
        raise InputError(
            f"axis.max_prompt_tokens {params.max_prompt_tokens} and axis.answer_tokens {params.answer_tokens} make "
            f"{needed} tokens, the model has a context of {loaded.context_tokens}; lower one of them"
        )


def _measure_answers(
    loaded: LoadedModel,
    questions: Sequence[Sequence[int]],
    calibration: Sequence[CalibrationPrompt],
    axis: NDArray[np.float32],
    params: AxisParams,
    tell: Report,
) -> tuple[Projections, dict[str, int]]:
    """The projections of the answers by kind and split, and how many answers and tokens there were."""
    directions = np.stack([_direction(layer, row) for layer, row in enumerate(axis)])
    answers = greedy_answers(
        loaded,
        questions,
        most_tokens=params.answer_tokens,
        batch_size=params.batch_size,
        progress=lambda done: tell(f"calibration answers: {done} of {len(questions)}"),
    )
    projected = answer_projections(loaded, questions, answers, directions, params.batch_size)
    projections = {
        (kind, split): _gather(
            [
                values
                for prompt, values in zip(calibration, projected, strict=True)
                if (prompt.kind, prompt.split) == (kind, split)
            ]
        )
        for kind in KINDS
        for split in SPLITS
    }
    counts = {
        "n_answers": len(answers),
        "n_empty_answers": sum(not answer for answer in answers),
        "n_answer_tokens": sum(map(len, answers)),
    }
    return projections, counts


def _direction(layer: int, row: NDArray[np.float32]) -> NDArray[np.float32]:
    try:
        return unit(row)
    except InputError as error:
        raise InputError(f"layer {layer}: {error}; the system prompts make no difference there") from error


def _gather(answers: Sequence[NDArray[np.float32]]) -> AnswerProjections:
    owners = np.repeat(np.arange(len(answers), dtype=np.int32), [len(values) for values in answers])
    return AnswerProjections(np.concatenate(answers), owners, len(answers))


def _plot_rows(
    axis: NDArray[np.float32], standard_error: NDArray[np.float32], sizes: NDArray[np.float32] | None
) -> list[dict[str, float]]:
    norms = np.linalg.norm(axis.astype(np.float64), axis=1)
    rows = [
        {"layer": layer, "norm": rounded(float(norm)), "standard_error": rounded(float(error))}
        for layer, (norm, error) in enumerate(zip(norms, standard_error, strict=True))
    ]
    for row, found in zip(rows, [] if sizes is None else sizes.tolist(), strict=sizes is not None):
        names = ("effect_size", "effect_size_low", "effect_size_high")
        row |= dict(zip(names, map(rounded, found), strict=True))
    return rows
