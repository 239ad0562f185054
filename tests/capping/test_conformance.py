"""The kit passes what is right on every path, and catches nine wrong caps on each."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from karma_electric.capping.conformance import CappedPath, Case, Pair, Result, judge, observe, observe_oracle
from karma_electric.capping.conformance_paths import FLOAT32_BOUND, LlamaCppPath, NumpyPath, PytorchPath
from karma_electric.capping.conformance_run import load_pytorch, make_cases, prompt_ids
from karma_electric.capping.oracle import Memory, Oracle
from karma_electric.errors import InputError
from karma_electric.gguf_files.writer import write_gguf
from tests.capping.mutants import MUTANTS, LlamaCppMutant, NumpyMutant, PytorchMutant
from tests.capping.other_architectures import Architecture, make_model, write_other_gguf
from tests.engines.pytorch_reference import write_varied_model


class Kit:
    """One model with its cases, and what the oracle says of them."""

    def __init__(self, folder: Path, gguf: Path, *, gguf_bound: float = FLOAT32_BOUND) -> None:
        self.folder = folder
        self.gguf_bound = gguf_bound
        self.oracle = Oracle(folder)
        self.cases = make_cases(self.oracle, prompt_ids(folder), bound=10 * gguf_bound)
        self.expected = {case.name: observe_oracle(self.oracle, case) for case in self.cases}
        self.gguf = gguf

    @cache  # noqa: B019
    def model(self) -> Any:
        return load_pytorch(self.folder, torch.float32)

    def results(self, path: CappedPath) -> list[Result]:
        return [judge(path, case, observe(path, case), self.expected[case.name]) for case in self.cases]

    def path(self, kind: str, mutant: str | None = None) -> CappedPath:
        if kind == "numpy":
            return NumpyMutant(self.oracle, mutant) if mutant else NumpyPath(self.oracle)
        if kind == "pytorch":
            return PytorchMutant(self.model(), mutant) if mutant else PytorchPath(self.model())
        path = (LlamaCppMutant if mutant else LlamaCppPath)(
            self.gguf, name="F32", logit_bound=self.gguf_bound, cache_type="f32"
        )
        if isinstance(path, LlamaCppMutant) and mutant:
            path.mutant = mutant
        return path


PATHS = ("numpy", "pytorch", "llama.cpp")


@pytest.fixture(scope="module")
def kit(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Kit:
    work = tmp_path_factory.mktemp("conformance")
    folder = write_varied_model(tiny_llama, work / "model")
    write_gguf(folder, work / "F32.gguf", gguf_type="F32", name="tiny")
    return Kit(folder, work / "F32.gguf")


@pytest.mark.parametrize("kind", PATHS)
def test_every_path_conforms(kit: Kit, kind: str) -> None:
    for result in kit.results(kit.path(kind)):
        assert result.faults == ()
        assert result.difference <= FLOAT32_BOUND
        assert result.effect > 10 * FLOAT32_BOUND
        assert result.agreement == 1
        assert result.compared > 0.9


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_caught(kit: Kit, kind: str, mutant: str) -> None:
    assert any(not result.conforms for result in kit.results(kit.path(kind, mutant)))


def test_the_cases_ask_for_what_they_should(kit: Kit) -> None:
    """Some positions lie above their ceiling and some below, in the prompt and in the answer."""
    for case in kit.cases:
        start = len(case.prompt)
        for layer, tau in case.cap.taus.items():
            found = kit.expected[case.name].uncapped.states[layer] @ case.cap.directions[layer].astype(np.float64)
            for part in (found[:start], found[start:]):
                assert (part > tau).any()
            assert (found > tau).mean() < 1 or case.name == "soft"


def test_the_oracle_is_transformers_in_float64(kit: Kit) -> None:
    model = load_pytorch(kit.folder, torch.float64)
    ids = kit.cases[0].token_ids
    with torch.no_grad():
        wanted = model(torch.tensor([list(ids)])).logits[0].numpy()
    found = kit.oracle.forward(ids, Memory.empty(), lambda _layer, hidden: hidden)
    assert np.abs(found - wanted).max() < 1e-5  # transformers turns and norms in float32
    memory = Memory.empty()
    parts = [kit.oracle.forward(part, memory, lambda _layer, hidden: hidden) for part in (ids[:9], ids[9:10], ids[10:])]
    assert np.abs(np.concatenate(parts) - found).max() < 1e-9


def test_a_model_that_the_oracle_does_not_know_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    config = (tiny_llama / "config.json").read_text().replace('"llama"', '"mamba"')
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(InputError, match=r"model_type is 'mamba' .*the oracle knows gemma, llama, qwen2"):
        Oracle(tmp_path)


def test_what_is_not_a_number_is_a_fault(kit: Kit) -> None:
    path, case = NumpyPath(kit.oracle), kit.cases[0]
    found = observe(path, case)
    broken = found.capped.logits.copy()
    broken[3, 5] = np.nan
    result = judge(path, case, Pair(replace(found.capped, logits=broken), found.uncapped), kit.expected[case.name])
    assert any("capped logits are nan" in fault for fault in result.faults)
    states = {layer: np.full_like(rows, np.nan) for layer, rows in found.capped.states.items()}
    result = judge(path, case, Pair(replace(found.capped, states=states), found.uncapped), kit.expected[case.name])
    assert "a state lies inf above where the cap puts it" in result.faults


def test_a_dead_cap_of_other_weights_is_caught_by_its_states(kit: Kit) -> None:
    """A quantised file has no bound on its logits."""

    def faults(path: CappedPath, case: Case) -> tuple[str, ...]:
        return judge(path, case, observe(path, case), kit.expected[case.name]).faults

    path = LlamaCppPath(kit.gguf, name="other", logit_bound=None, cache_type="f16")
    dead = LlamaCppMutant(kit.gguf, name="other", logit_bound=None, cache_type="f16")
    dead.mutant = "no-op"
    assert faults(path, kit.cases[0]) == ()
    assert "above where the cap puts it" in faults(dead, kit.cases[0])[0]


# --- other architectures ---


@pytest.mark.parametrize(("architecture", "bound"), [("qwen2", FLOAT32_BOUND), ("gemma", 5e-3)])
def test_other_architectures_conform_in_pytorch_and_in_stock_llama_cpp(
    architecture: Architecture, bound: float, tiny_llama: Path, tmp_path: Path
) -> None:
    """Gemma's GELU comes from a table of F16 values in llama.cpp, capped or not, so its logits are less exact."""
    folder = make_model(architecture, tiny_llama, tmp_path / "model")
    kit = Kit(folder, write_other_gguf(folder, tiny_llama, tmp_path / "F32.gguf"), gguf_bound=bound)
    for kind in PATHS:
        for result in kit.results(kit.path(kind)):
            assert result.faults == ()
        assert any(not result.conforms for result in kit.results(kit.path(kind, "no-op")))


def test_our_writer_says_plainly_that_it_writes_llama_only(tiny_llama: Path, tmp_path: Path) -> None:
    folder = make_model("qwen2", tiny_llama, tmp_path / "model")
    with pytest.raises(InputError, match=r"architectures is \['Qwen2ForCausalLM'\], expected \['LlamaForCausalLM'\]"):
        write_gguf(folder, tmp_path / "F32.gguf", gguf_type="F32", name="tiny")
