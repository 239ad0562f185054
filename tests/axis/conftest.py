from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from karma_electric.axis.params import AcapParams, AxisParams
from tests.axis.prompt_files import PromptFiles, write_prompt_files

AXIS = AxisParams(
    source="prompts",
    samples=60,
    seed=1,
    max_prompt_tokens=256,
    answer_tokens=12,
    batch_size=5,
    position="last-prompt-token",
    second_language_share=0,
    effect_sizes=False,
)
ACAP = AcapParams(
    rule="percentile", percentile=75, k_sigma=1, threshold=None, alpha=1, layers=(1, 3), layer_choice="depth"
)


@dataclass(frozen=True)
class Measured:
    """What extract_axis made of the tiny model. Not to be written to."""

    prompts: PromptFiles
    axis: Path
    projections: Path
    result: dict[str, Any]


@pytest.fixture(scope="session")
def prompt_files(tmp_path_factory: pytest.TempPathFactory) -> PromptFiles:
    return write_prompt_files(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="session")
def measured(tiny_llama: Path, prompt_files: PromptFiles, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    from karma_electric.axis.extraction import extract_axis

    folder = tmp_path_factory.mktemp("measured")
    axis, projections = folder / "axis.safetensors", folder / "projections.safetensors"
    result = extract_axis(
        tiny_llama,
        contrast_prompts=prompt_files.contrast,
        generic_prompts=prompt_files.generic,
        persona_prompt=prompt_files.persona,
        calibration_prompts=prompt_files.calibration,
        training_set=None,
        output_axis=axis,
        output_projections=projections,
        params=AXIS,
    )
    return Measured(prompt_files, axis, projections, result)
