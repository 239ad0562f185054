"""The axis against a naive loop in float64, against a planted direction, and on faulty input."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from karma_electric.axis import extraction
from karma_electric.axis.extraction import (
    axis_with_error,
    contrast_states,
    extract_axis,
    measure_contrast,
    recorded,
)
from karma_electric.axis.measurements import read_axis, read_projections
from karma_electric.axis.model import CPU_THREADS, LoadedModel, load_model, render
from karma_electric.axis.prompts import read_contrast_prompts, read_generic_prompts
from karma_electric.errors import InputError, IntegrityError
from karma_electric.integrity import sha256_file, write_manifest
from karma_electric.safetensors_files import open_safetensors, save_safetensors
from tests.axis.conftest import AXIS, Measured
from tests.axis.prompt_files import CONTRAST, PromptFiles, write_prompt_files, write_rows
from tests.axis.test_states import naive_states


def _cosines(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: NDArray[np.float64] = np.einsum("lh,lh->l", left, right, dtype=np.float64) / lengths
    return cosines


@pytest.fixture(scope="module")
def naive(tiny_llama: Path, prompt_files: PromptFiles) -> NDArray[np.float64]:
    """(prompts, n_layers, hidden_size): mean of the generic states minus the persona's, in float64."""
    loaded = load_model(tiny_llama, dtype=torch.float64)
    generic = [prompt.text for prompt in read_generic_prompts(prompt_files.generic)]

    def state(system: str, text: str) -> NDArray[np.float64]:
        return naive_states(loaded.model, render(loaded, system, text, most_tokens=256, where=text))[:, -1]

    persona = prompt_files.persona.read_text().strip()
    return np.stack([np.mean([state(g, text) for g in generic], axis=0) - state(persona, text) for text in CONTRAST])


def test_the_axis_is_generic_minus_persona(
    tiny_llama: Path, prompt_files: PromptFiles, naive: NDArray[np.float64]
) -> None:
    loaded = load_model(tiny_llama, dtype=torch.float32)
    systems = [prompt_files.persona.read_text().strip()]
    systems += [prompt.text for prompt in read_generic_prompts(prompt_files.generic)]
    axis, error = measure_contrast(loaded, read_contrast_prompts(prompt_files.contrast), systems, AXIS, lambda _: None)
    expected = naive.mean(axis=0)
    assert axis.shape == (4, 256)
    np.testing.assert_allclose(axis, expected, atol=1e-5)
    assert _cosines(axis, expected).min() > 0.9999
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    along = (naive * unit).sum(-1)
    np.testing.assert_allclose(error, along.std(axis=0, ddof=1) / len(CONTRAST) ** 0.5, rtol=1e-3)


def test_the_stage_finds_the_axis_of_float32_states(measured: Measured, naive: NDArray[np.float64]) -> None:
    found = read_axis(measured.axis)
    assert _cosines(found.axis, naive.mean(axis=0)).min() > 0.9999
    rows = measured.result["layers"]
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    np.testing.assert_allclose([row["norm"] for row in rows], np.linalg.norm(found.axis, axis=1), rtol=1e-4)
    np.testing.assert_allclose([row["standard_error"] for row in rows], found.standard_error, rtol=1e-4)


def test_what_is_written_says_what_it_is_from(tiny_llama: Path, measured: Measured) -> None:
    identity = read_axis(measured.axis).identity
    assert identity["model"] == "test/tiny"
    assert identity["model_sha256"] == sha256_file(tiny_llama / "manifest.json")
    assert identity["model_type"] == "llama"
    assert identity["n_samples"] == len(CONTRAST)
    assert identity["params"] == recorded(AXIS)
    assert set(identity["prompts"]) == {"persona", "generic", "contrast"}
    assert list(open_safetensors(measured.axis).metadata) == ["karma"]
    projections = read_projections(measured.projections, measured.axis, 4)
    counts = {name: measured.result[name] for name in ("n_samples", "n_answers", "n_answer_tokens", "n_empty_answers")}
    tokens = sum(len(found.values) for found in projections.values())
    assert counts == {"n_samples": 6, "n_answers": 16, "n_answer_tokens": tokens, "n_empty_answers": 0}
    assert {found.n_answers for found in projections.values()} == {2}
    for found in projections.values():
        assert found.values.shape[1] == 4
        assert np.bincount(found.answers).max() <= AXIS.answer_tokens


def test_the_error_by_hand() -> None:
    differences = torch.tensor([[[3.0, 0.0]], [[5.0, 1.0]], [[4.0, -1.0]]], dtype=torch.float64)
    axis, error = axis_with_error(differences)
    assert axis.tolist() == [[4.0, 0.0]]
    assert error[0] == pytest.approx(1 / 3**0.5)
    with pytest.raises(InputError, match="needs two"):
        axis_with_error(differences[:1])


def test_states_that_are_not_finite_make_no_axis(tiny_llama: Path, prompt_files: PromptFiles) -> None:
    broken = load_model(tiny_llama)
    broken.blocks[2].mlp.down_proj.weight.data[3, 3] = float("inf")  # type: ignore[union-attr, operator]
    prompts = read_contrast_prompts(prompt_files.contrast)
    with pytest.raises(IntegrityError, match="a hidden state is not finite"):
        contrast_states(broken, prompts, ["You care.", "You help."], AXIS, lambda _line: None)


def _plant(folder: Path, token: int) -> NDArray[np.float64]:
    """Edit the model: its first block adds u x (share of `token` among all tokens so far), nothing else depends on it.

    The other blocks keep what is there, because their outputs are zero. Returns u.
    """
    path = folder / "model.safetensors"
    file = open_safetensors(path)
    tensors = {name: file.load(name) for name in file.tensors}
    planted = torch.zeros(256)
    planted[:128] = 2.0 * torch.randint(0, 2, (128,), generator=torch.Generator().manual_seed(5)) - 1
    embedding = tensors["model.embed_tokens.weight"]
    embedding[:, 255] = 0
    embedding[token] = 0
    embedding[token, 255] = 1
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "q_proj.weight", "k_proj.weight")):
            tensor.zero_()
    first = "model.layers.0.self_attn"
    tensors[f"{first}.v_proj.weight"].zero_()[0, 255] = 1  # the first value: is this the token?
    tensors[f"{first}.o_proj.weight"][:, 0] = planted  # equal keys, so attention is the mean over positions
    save_safetensors(path, tensors, file.metadata)
    return planted.double().numpy()


def test_a_planted_direction_is_recovered(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    token = load_model(folder).tokenizer.encode("@", add_special_tokens=False)
    assert len(token) == 1
    planted = _plant(folder, token[0])
    write_manifest(folder, {"repo": "test/planted"})
    prompts = write_prompt_files(tmp_path / "prompts")
    prompts.persona.write_text("Be @ kind @ now @.")
    result = _extract(folder, prompts, tmp_path)
    axis = read_axis(tmp_path / "axis.safetensors").axis
    assert np.all(_cosines(axis, np.tile(-planted, (4, 1))) > 0.9999)  # away from the persona
    assert all(0 < row["standard_error"] < row["norm"] / 4 for row in result["layers"])


def _extract(model: Path, prompts: PromptFiles, output: Path, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "contrast_prompts": prompts.contrast,
        "generic_prompts": prompts.generic,
        "persona_prompt": prompts.persona,
        "calibration_prompts": prompts.calibration,
        "training_set": None,
        "output_axis": output / "axis.safetensors",
        "output_projections": output / "projections.safetensors",
        "params": AXIS,
    }
    return extract_axis(model, **(arguments | changes))


def _params(**changes: Any) -> Mapping[str, Any]:
    return {"params": AXIS.model_copy(update=changes)}


def test_faulty_input_is_refused_and_nothing_is_written(
    tiny_llama: Path, prompt_files: PromptFiles, tmp_path: Path
) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"id": "long", "prompt": "word " * 300}, {"id": "b", "prompt": "b"}])
    same = write_rows(tmp_path / "same.jsonl", [{"id": "p", "prompt": prompt_files.persona.read_text()}])
    output = tmp_path / "output"
    faults: list[tuple[Mapping[str, Any], str]] = [
        ({"contrast_prompts": long}, r"long\.jsonl:1: \d+ tokens .*max_prompt_tokens is 256"),
        ({"contrast_prompts": None}, "axis.source is 'prompts'"),
        (_params(source="training-set"), "axis.source is 'training-set'"),
        ({"generic_prompts": same}, "a contrast needs other prompts"),
        (_params(answer_tokens=2000), "the model has a context of 2048"),
        (_params(samples=1), "a standard error needs two"),
        ({"persona_prompt": tmp_path / "none.txt"}, "none.txt"),
    ]
    for changes, fault in faults:
        with pytest.raises(InputError, match=fault):
            _extract(tiny_llama, prompt_files, output, **changes)
    assert not output.exists() or not list(output.iterdir())


def test_a_damaged_model_is_refused(tiny_llama: Path, prompt_files: PromptFiles, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match="sha256 is"):
        _extract(folder, prompt_files, tmp_path)


def test_the_training_set_can_be_the_source(tiny_llama: Path, prompt_files: PromptFiles, tmp_path: Path) -> None:
    rows = [
        {
            "id": f"r{number}",
            "source": "test",
            "category": "c",
            "conversations": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}],
        }
        for number, text in enumerate(text for text in CONTRAST if len(text) > 20)
    ]
    training_set = write_rows(tmp_path / "set.jsonl", rows)
    params = AXIS.model_copy(update={"source": "training-set", "samples": 3, "answer_tokens": 2})
    result = _extract(
        tiny_llama, prompt_files, tmp_path, contrast_prompts=None, training_set=training_set, params=params
    )
    assert result["n_samples"] == 3


def test_progress_is_reported(tiny_llama: Path, prompt_files: PromptFiles, tmp_path: Path) -> None:
    lines: list[str] = []
    _extract(tiny_llama, prompt_files, tmp_path, report=lines.append, **_params(answer_tokens=1))
    assert lines == [
        *(f"contrast prompts: {done} of 24" for done in (5, 6, 11, 12, 17, 18, 23, 24)),
        *(f"calibration answers: {done} of 16" for done in (5, 10, 15, 16)),
    ]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_bytes_do_not_depend_on_the_number_of_cores(
    tiny_llama: Path, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    seen: list[int] = []

    def load_and_look(folder: Path) -> LoadedModel:
        seen.append(torch.get_num_threads())
        return load_model(folder)

    monkeypatch.setattr(extraction, "load_model", load_and_look)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        extract_axis(
            tiny_llama,
            contrast_prompts=measured.prompts.contrast,
            generic_prompts=measured.prompts.generic,
            persona_prompt=measured.prompts.persona,
            calibration_prompts=measured.prompts.calibration,
            training_set=None,
            output_axis=tmp_path / "axis.safetensors",
            output_projections=tmp_path / "projections.safetensors",
            params=AXIS,
        )
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert seen == [CPU_THREADS]
    assert (tmp_path / "axis.safetensors").read_bytes() == measured.axis.read_bytes()
    assert (tmp_path / "projections.safetensors").read_bytes() == measured.projections.read_bytes()
