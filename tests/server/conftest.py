from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from karma_electric.axis.files import load_axis
from karma_electric.engines.llama_cpp import LlamaCppEngine
from tests.server.serving import Release, Server, make_release, serving


@pytest.fixture(scope="session")
def release(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return make_release(tiny_llama, tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def server(release: Release) -> Iterator[Server]:
    with serving(release.gguf, "--acap", release.axis, "--parallel", "4", "--context", "1024") as server:
        yield server


@pytest.fixture(scope="session")
def engine(release: Release) -> Iterator[LlamaCppEngine]:
    """What the answers are compared with."""
    axis = load_axis(release.axis)
    with LlamaCppEngine(
        release.gguf, cap=axis.cap(), axis_sha256=axis.sha256, threads=1, context_tokens=1024
    ) as engine:
        yield engine
