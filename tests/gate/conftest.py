"""A tiny random model and an axis for it, as files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from karma_electric.axis.gguf_writer import write_axis_gguf
from karma_electric.gguf_files.quantize import make_gguf

HIDDEN_SIZE = 256  # of the tiny Llama


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    """llama.cpp's threads wait for each other in a loop: on a busy machine two are many times slower than one."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Judged:
    """The two files that a gate judges."""

    model: Path
    axis: Path


def write_axis(path: Path, tau: float) -> Path:
    directions = np.random.default_rng(0).normal(size=(2, HIDDEN_SIZE)).astype(np.float32)
    layers = {2: directions[0], 3: directions[1]}
    write_axis_gguf(path, layers, {2: tau, 3: tau}, alpha=1.0, model_type="llama", identity={"model": "tiny"})
    return path


@pytest.fixture(scope="session")
def judged(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    folder = tmp_path_factory.mktemp("judged")
    model = folder / "tiny-v0-Q8_0.gguf"
    make_gguf(tiny_llama, model, gguf_type="Q8_0", name="tiny-v0", threads=1)
    return Judged(model, write_axis(folder / "bodhisattva_axis_v0.gguf", 0.0))
