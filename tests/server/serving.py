"""A tiny model, its axis, and the real `karma serve` in a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai

from karma_electric.axis.gguf_writer import write_axis_gguf
from karma_electric.gguf_files.writer import write_gguf
from karma_electric.integrity import MANIFEST_NAME, sha256_file, write_manifest
from tests.cli.running import KARMA
from tests.engines.pytorch_reference import QUESTION, PytorchReference, write_varied_model

LAYERS = (1, 2)
HIDDEN_SIZE = 256
SECONDS = 120  # until a test that waits in vain gives up


@dataclass(frozen=True)
class Release:
    """What a build makes, small: a merged folder, its GGUF, its axis."""

    folder: Path
    gguf: Path
    axis: Path


def make_release(tiny_llama: Path, folder: Path) -> Release:
    """A model that says varied things, and an axis whose cap acts on about half of what it reads."""
    model = write_varied_model(tiny_llama, folder / "merged")
    identity = {"source": "folder", "repo": "test/tiny", "license": "mit", "architecture": "LlamaForCausalLM"}
    write_manifest(model, identity)
    write_gguf(model, folder / "tiny.gguf", gguf_type="F32", name="tiny")
    random = np.random.default_rng(7)
    directions = {layer: random.normal(size=HIDDEN_SIZE).astype(np.float32) for layer in LAYERS}
    write_axis_gguf(
        folder / "axis.gguf",
        directions,
        medians(model, directions),
        alpha=1.0,
        model_type="llama",
        identity={"model": "test/tiny", "model_sha256": sha256_file(model / MANIFEST_NAME), "firing_rate": 0.5},
    )
    return Release(model, folder / "tiny.gguf", folder / "axis.gguf")


def medians(model: Path, directions: dict[int, Any]) -> dict[int, float]:
    """Of the projections of a prompt, by layer."""
    from karma_electric.capping.formula import Cap, unit

    reference = PytorchReference(model)
    free = Cap({layer: unit(each) for layer, each in directions.items()}, dict.fromkeys(directions, 0.0), 1.0)
    found = reference.projections(reference.prompt_ids(QUESTION), free, capped=False)
    return {layer: float(np.median(values)) for layer, values in found.items()}


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str
    process: subprocess.Popen[str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=SECONDS)

    def complete(self, **options: Any) -> Any:
        """A completion, or the chunks of a stream, of OpenAI's client."""
        create: Any = self.client().chat.completions.create
        return create(**options)

    def status(self) -> dict[str, int]:
        found: dict[str, int] = httpx.get(f"{self.url}/karma/status", timeout=SECONDS).json()
        return found

    def wait_until(self, holds: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        """Ask for the status until it is so."""
        deadline = time.monotonic() + SECONDS
        while not holds(status := self.status()):
            assert time.monotonic() < deadline, f"the server stays at {status}"
        return status


@contextlib.contextmanager
def serving(*arguments: str | Path, exit_code: int = 0) -> Iterator[Server]:
    """`karma serve ... --port 0`, ended by SIGTERM where the test has not ended it."""
    command = [str(KARMA), "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.fullmatch(r"listening on (http://\S+)\n", line):
                yield Server(found[1], process)
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(said)}")
    finally:
        process.terminate()
        out, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, errors) == (exit_code, "", "")
