"""The choices beside the seeds' way: the answer's mean, a second language, layers by effect size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from karma_electric.axis.effect_sizes import best_window, effect_sizes
from karma_electric.axis.extraction import contrast_states, extract_axis, recorded
from karma_electric.axis.measurements import read_axis
from karma_electric.axis.model import load_model, render
from karma_electric.axis.params import AxisParams
from karma_electric.axis.prompts import read_contrast_prompts, sample, sample_by_language
from karma_electric.axis.states import greedy_answers
from karma_electric.axis.thresholds import capping_layers
from karma_electric.canonical import canonical_json
from karma_electric.errors import InputError
from karma_electric.parameters import parse_parameters
from tests.axis.conftest import ACAP, AXIS, Measured
from tests.axis.prompt_files import CONTRAST, PromptFiles, write_rows
from tests.axis.test_states import naive_states

CZECH = ["Jak dlouho vydrží vařená vejce?", "Sestra mi od května nezavolala.", "Rozbil jsem vázu."]


def axis_params(**changes: Any) -> AxisParams:
    return AxisParams(**(AXIS.model_dump() | changes))


def extract(model: Path, files: PromptFiles, folder: Path, *, contrast: Path, params: AxisParams) -> dict[str, Any]:
    """The metrics; the axis is `axis.safetensors` in `folder`."""
    return extract_axis(
        model,
        contrast_prompts=contrast,
        generic_prompts=files.generic,
        persona_prompt=files.persona,
        calibration_prompts=files.calibration,
        training_set=None,
        output_axis=folder / "axis.safetensors",
        output_projections=folder / "projections.safetensors",
        params=params,
    )


def test_the_answers_mean_is_that_of_a_naive_loop(tiny_llama: Path, prompt_files: PromptFiles) -> None:
    loaded = load_model(tiny_llama, dtype=torch.float64)
    prompts = read_contrast_prompts(prompt_files.contrast)[:3]
    systems = ["You care.", "You help."]
    params = axis_params(position="answer-mean", answer_tokens=5, batch_size=4)
    persona, differences = contrast_states(loaded, prompts, systems, params, lambda _line: None)
    for row, prompt in enumerate(prompts):
        means = []
        for system in systems:
            ids = render(loaded, system, prompt.text, most_tokens=256, where="")
            answer = greedy_answers(loaded, [ids], most_tokens=5, batch_size=1)[0]
            means.append(naive_states(loaded.model, [*ids, *answer])[:, len(ids) :].mean(axis=1))
        np.testing.assert_allclose(persona[row], means[0], atol=1e-5)
        np.testing.assert_allclose(differences[row], means[1] - means[0], atol=1e-5)


def test_an_answer_that_ends_at_once_is_named(
    tiny_llama: Path, prompt_files: PromptFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("karma_electric.axis.extraction.greedy_answers", lambda *_a, **_k: [[5]] * 3 + [[]] * 3)
    prompts, loaded = read_contrast_prompts(prompt_files.contrast), load_model(tiny_llama)
    with pytest.raises(InputError, match=r"contrast\.jsonl:4: the model ends its answer at once"):
        contrast_states(loaded, prompts, ["a", "b"], axis_params(position="answer-mean"), lambda _line: None)


# --- languages ---


def bilingual(tmp_path: Path) -> Path:
    rows = [{"id": f"e{n}", "prompt": text} for n, text in enumerate(CONTRAST)]
    rows += [{"id": f"c{n}", "prompt": text, "language": "cs"} for n, text in enumerate(CZECH)]
    return write_rows(tmp_path / "contrast.jsonl", rows)


def test_a_share_of_the_prompts_is_in_another_language(tmp_path: Path) -> None:
    prompts = read_contrast_prompts(bilingual(tmp_path))
    english = [prompt for prompt in prompts if prompt.language == "en"]
    assert len(english) == len(CONTRAST)
    assert sample_by_language(prompts, 4, 7, 0.0) == sample(english, 4, 7)
    found = sample_by_language(prompts, 6, 7, 1 / 3)
    assert [prompt.language for prompt in found] == ["en"] * 4 + ["cs"] * 2
    with pytest.raises(InputError, match=r"takes 6 prompts that are not English, there are 3, and 6 in English"):
        sample_by_language(prompts, 8, 7, 0.75)


def test_prompts_in_another_language_do_not_change_an_english_axis(
    tiny_llama: Path, prompt_files: PromptFiles, measured: Measured, tmp_path: Path
) -> None:
    extract(tiny_llama, prompt_files, tmp_path, contrast=bilingual(tmp_path), params=AXIS)
    assert (tmp_path / "axis.safetensors").read_bytes() == measured.axis.read_bytes()


# --- effect sizes ---


def states(distance: list[float], prompts: int = 40, seed: int = 0) -> tuple[Any, Any]:
    """Persona and difference, (prompts, layers, 16): generic lies `distance` standard deviations away."""
    dice = np.random.default_rng(seed)
    directions = dice.normal(size=(len(distance), 16))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    persona = dice.normal(size=(prompts, len(distance), 16))
    generic = dice.normal(size=persona.shape) + np.array(distance)[:, None] * directions
    return persona, generic - persona


def test_an_effect_size_finds_what_was_planted() -> None:
    found = effect_sizes(*states([0.0, 1.0, 4.0], prompts=400))
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found[:, 0], [0, 1, 4], atol=0.35)
    assert (found[:, 1] < found[:, 0]).all()
    assert (found[:, 0] < found[:, 2]).all()
    assert found[0, 1] < 0 < found[0, 2]  # prompts that made a direction don't judge it, else noise would look like one
    assert np.array_equal(found, effect_sizes(*states([0.0, 1.0, 4.0], prompts=400)))
    with pytest.raises(InputError, match="5 contrast prompts: an effect size needs 8"):
        effect_sizes(*states([1.0], prompts=5))


def test_the_best_window_has_the_largest_lower_ends() -> None:
    low = np.array([9, 1, 5, 6, 2, 1, 9], np.float32)
    sizes = np.stack([low + 1, low, low + 2], axis=1)
    assert best_window(sizes, 2) == (2, 3)
    assert best_window(sizes, 1) == (3, 3)
    assert best_window(sizes, 9) == (1, 5)  # never block 0, nor the last


def test_layers_are_chosen_by_effect_size_where_it_was_measured(
    tiny_llama: Path, prompt_files: PromptFiles, tmp_path: Path
) -> None:
    rows = [{"id": f"c{n}", "prompt": f"{text} {n}"} for n, text in enumerate(CONTRAST * 2)]
    contrast = write_rows(tmp_path / "contrast.jsonl", rows)
    params = axis_params(effect_sizes=True, answer_tokens=2)
    result = extract(tiny_llama, prompt_files, tmp_path, contrast=contrast, params=params)
    sizes = read_axis(tmp_path / "axis.safetensors").effect_sizes
    assert sizes is not None
    assert [row["effect_size"] for row in result["layers"]] == pytest.approx(sizes[:, 0].tolist(), rel=1e-5)
    choice = ACAP.model_copy(update={"layers": None, "layer_choice": "effect-size"})
    first, last = best_window(sizes, 1)
    assert capping_layers(choice, 4, sizes) == tuple(range(first, last + 1))
    with pytest.raises(InputError, match=r"none was measured; set axis\.effect_sizes: true"):
        capping_layers(choice, 4)


def test_layers_and_a_choice_of_layers_exclude_each_other() -> None:
    with pytest.raises(InputError, match="exclude each other; set layers to null"):
        parse_parameters(ACAP.model_dump() | {"layer_choice": "effect-size"}, type(ACAP), where="params.yaml: acap")


def test_the_record_names_later_choices_only_where_they_are_made() -> None:
    plain = recorded(AXIS)
    assert set(plain) == {"source", "samples", "seed", "max_prompt_tokens", "answer_tokens", "batch_size"}
    assert recorded(axis_params(position="answer-mean")) == plain | {"position": "answer-mean"}
    assert canonical_json(plain)
