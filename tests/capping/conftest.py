"""The tiny Llama in two precisions, and a cap for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from karma_electric.capping.formula import Cap, unit
from tests.capping.torch_runs import LAYERS, PROMPT, load, outputs_of


@pytest.fixture(scope="module")
def model64(tiny_llama: Path) -> Any:
    return load(tiny_llama, torch.float64)


@pytest.fixture(scope="module")
def model32(tiny_llama: Path) -> Any:
    return load(tiny_llama, torch.float32)


@pytest.fixture(scope="module")
def cap(model64: Any) -> Cap:
    """Random axes, with ceilings at the median, so that about half of the positions fire."""
    dice = np.random.default_rng(3)
    directions = {layer: unit(dice.normal(size=256)) for layer in LAYERS}
    outputs = outputs_of(model64, input_ids=PROMPT)
    taus = {layer: float(np.median(outputs[layer][0].numpy() @ directions[layer])) for layer in LAYERS}
    return Cap(directions=directions, taus=taus, alpha=0.75)
