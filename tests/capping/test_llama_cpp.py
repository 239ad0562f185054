"""The cap in llama.cpp against PyTorch with the reference formula, and every way that it could silently not act."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap, unit
from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.engines import llama_cpp
from karma_electric.engines.llama_cpp import LlamaCppEngine
from karma_electric.engines.llama_cpp_binding import EvalCallback
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError, IntegrityError
from karma_electric.gguf_files.writer import write_gguf
from tests.engines.pytorch_reference import QUESTION, PytorchReference, write_varied_model

BOUND = 1e-3  # of logits, F32 weights and cache
AXIS_SHA256 = "a" * 64
HIDDEN_SIZE, BLOCKS = 256, 4


@pytest.fixture(scope="module")
def varied_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_varied_model(tiny_llama, tmp_path_factory.mktemp("varied") / "model")


@pytest.fixture(scope="module")
def reference(varied_llama: Path) -> PytorchReference:
    return PytorchReference(varied_llama)


@pytest.fixture(scope="module")
def gguf(varied_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capped") / "f32.gguf"
    write_gguf(varied_llama, path, gguf_type="F32", name="tiny")
    return path


@pytest.fixture(scope="module")
def ids(reference: PytorchReference) -> list[int]:
    return reference.prompt_ids(QUESTION)


def make_cap(
    reference: PytorchReference, ids: list[int], layers: tuple[int, ...], alpha: float = 1.0, below: float = 0.0
) -> Cap:
    """Random directions; the ceiling is `below` under the median of the prompt's projections."""
    random = np.random.default_rng(7)
    directions = {layer: unit(random.normal(size=HIDDEN_SIZE)) for layer in layers}
    free = Cap(directions, dict.fromkeys(layers, 0.0), alpha)
    found = reference.projections(ids, free, capped=False)
    return Cap(directions, {layer: float(np.median(found[layer])) - below for layer in layers}, alpha)


@pytest.fixture(scope="module")
def cap(reference: PytorchReference, ids: list[int]) -> Cap:
    return make_cap(reference, ids, (1, 2))


def engine_of(gguf: Path, cap: Cap) -> LlamaCppEngine:
    return LlamaCppEngine(gguf, cap=cap, axis_sha256=AXIS_SHA256, threads=1, cache_type="f32")


@pytest.fixture(scope="module")
def engine(gguf: Path, cap: Cap) -> Iterator[LlamaCppEngine]:
    with engine_of(gguf, cap) as engine:
        yield engine


@pytest.mark.parametrize(("layers", "alpha"), [((1, 2), 1.0), ((1, 2, 3), 1.0), ((3,), 1.0), ((2,), 0.5)])
def test_capped_logits_and_answers_are_those_of_pytorch(
    gguf: Path, reference: PytorchReference, ids: list[int], layers: tuple[int, ...], alpha: float
) -> None:
    cap = make_cap(reference, ids, layers, alpha, below=5.0)
    expected = reference.logits(ids, cap)
    with engine_of(gguf, cap) as engine:
        capped, plain = engine.all_logits(ids, capped=True), engine.all_logits(ids)
        answer = engine.generate(QUESTION, max_tokens=12, capped=True).token_ids
        plain_answer = engine.generate(QUESTION, max_tokens=12).token_ids
    assert np.abs(capped - expected).max() < BOUND
    assert np.abs(plain - reference.logits(ids)).max() < BOUND
    assert np.abs(capped - plain).max() > 10 * BOUND
    assert list(answer) == reference.greedy(ids, 12, cap)[: len(answer)] != list(plain_answer)


def test_no_projection_is_above_its_ceiling_after_the_cap(
    gguf: Path, cap: Cap, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    after: dict[int, list[NDArray[np.float32]]] = {layer: [] for layer in cap.layers}

    class ReadingBack(CapCallback):
        def _cap_rows(self, tensor: int, block: Any) -> None:
            super()._cap_rows(tensor, block)
            states = np.empty((self._count_rows(tensor, block), HIDDEN_SIZE), np.float32)
            self._library.ggml_backend_tensor_get(tensor, states.ctypes.data, 0, states.nbytes)
            if block.tau == np.float32(cap.taus[block.layer]):  # not while the engine proves itself
                after[block.layer].append(states)

    monkeypatch.setattr(llama_cpp, "CapCallback", ReadingBack)
    with engine_of(gguf, cap) as engine:
        engine.all_logits(ids, capped=True)
    for layer, tau in cap.taus.items():
        projections = np.concatenate(after[layer]) @ cap.directions[layer]
        assert len(projections) == len(ids)
        assert projections.max() <= tau + 1e-4
        assert projections.max() > tau - 1e-4  # it was reached, so the cap acted


@pytest.mark.parametrize("layers", [(1, 2), (1, 3)])
def test_activity_is_that_of_pytorch_and_counts_what_is_reused(
    gguf: Path, reference: PytorchReference, ids: list[int], layers: tuple[int, ...]
) -> None:
    cap = make_cap(reference, ids, layers)
    with engine_of(gguf, cap) as engine:
        first = engine.generate(QUESTION, max_tokens=5, capped=True)
        again = engine.generate(QUESTION, max_tokens=5, capped=True)
    read = [*ids, *first.token_ids][: len(ids) + len(first.token_ids) - (first.finish == "length")]
    found = reference.projections(read, cap, capped=True)
    fired = sum(int((found[layer] > cap.taus[layer]).sum()) for layer in layers)
    assert first.cap == again.cap == CapActivity(positions=len(read) * len(layers), fired=fired)
    assert 0 < fired < first.cap.positions


def test_uncapped_answers_count_nothing_and_leave_capped_ones_alone(
    engine: LlamaCppEngine, reference: PytorchReference, ids: list[int]
) -> None:
    before = engine.generate(QUESTION, max_tokens=6, capped=True)
    plain = engine.generate(QUESTION, max_tokens=6)
    assert plain.cap == CapActivity(0, 0)
    assert list(plain.token_ids) == reference.greedy(ids, 6)[: len(plain.token_ids)]
    assert engine.generate(QUESTION, max_tokens=6, capped=True) == before


def test_capped_scores_are_those_of_pytorch(
    engine: LlamaCppEngine, reference: PytorchReference, ids: list[int], cap: Cap
) -> None:
    options = ["1/10", "7/10", "10/10"]
    prefix_ids = engine.prompt_token_ids(QUESTION, prefix="Overall: ")
    expected = []
    for option in options:
        tokens = engine.tokenize(option)
        wide = reference.logits([*prefix_ids, *tokens], cap).astype(np.float64)
        wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
        expected.append(sum(wide[len(prefix_ids) - 1 + i, token] for i, token in enumerate(tokens)))
    found = engine.score(QUESTION, prefix="Overall: ", options=options, capped=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    plain = engine.score(QUESTION, prefix="Overall: ", options=options)
    assert np.abs(np.subtract(found, plain)).max() > 0.01


def test_an_open_cap_changes_no_bit(gguf: Path, cap: Cap, ids: list[int]) -> None:
    nothing = Cap(cap.directions, dict.fromkeys(cap.layers, 1e6), 1.0)
    with engine_of(gguf, nothing) as engine:
        assert np.array_equal(engine.all_logits(ids, capped=True), engine.all_logits(ids))
        assert engine.generate(QUESTION, max_tokens=2, capped=True).cap.fired == 0


# --- a cap that does not act is an error, never an uncapped answer ---


def _counts_but_writes_nothing(self: CapCallback, tensor: int, block: Any) -> None:
    block.rows += self._count_rows(tensor, block)
    block.fired += block.rows * (block.tau < 0)


def _skips_a_layer(self: CapCallback, tensor: int, block: Any) -> None:
    if block.layer == 1:
        _original(self, tensor, block)


def _caps_the_first_row_only(self: CapCallback, tensor: int, block: Any) -> None:
    block.rows += 1
    block.fired += bool(block.tau < 0)


_original = CapCallback._cap_rows


@pytest.mark.parametrize("mutant", [_counts_but_writes_nothing, _skips_a_layer, _caps_the_first_row_only])
def test_a_callback_that_does_not_cap_is_found_out(
    gguf: Path, cap: Cap, ids: list[int], monkeypatch: pytest.MonkeyPatch, mutant: Callable[..., None]
) -> None:
    monkeypatch.setattr(CapCallback, "_cap_rows", mutant)
    with engine_of(gguf, cap) as engine, pytest.raises(IntegrityError, match="cap"):
        engine.all_logits(ids, capped=True)


def test_a_layer_that_goes_missing_later_is_found_out(
    engine: LlamaCppEngine, ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = engine.all_logits(ids, capped=True)
    monkeypatch.setattr(CapCallback, "_cap_rows", _skips_a_layer)
    with pytest.raises(IntegrityError, match=r"the cap of layer 2 saw 0 of 16 rows of l_out-2"):
        engine.all_logits(ids, capped=True)
    monkeypatch.undo()
    assert np.array_equal(engine.all_logits(ids, capped=True), before)


def test_renamed_tensors_are_found_out(gguf: Path, cap: Cap, monkeypatch: pytest.MonkeyPatch) -> None:
    class Renamed(CapCallback):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._blocks = {name.replace(b"l_out", b"layer_out"): block for name, block in self._blocks.items()}

    monkeypatch.setattr(llama_cpp, "CapCallback", Renamed)
    with engine_of(gguf, cap) as engine, pytest.raises(IntegrityError, match="names its blocks otherwise"):
        engine.generate(QUESTION, max_tokens=1, capped=True)


def test_a_callback_that_is_not_installed_is_found_out(gguf: Path, cap: Cap, monkeypatch: pytest.MonkeyPatch) -> None:
    class NotInstalled(CapCallback):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.function = EvalCallback()

    monkeypatch.setattr(llama_cpp, "CapCallback", NotInstalled)
    with engine_of(gguf, cap) as engine, pytest.raises(IntegrityError, match="saw 0 of 1 rows"):
        engine.generate(QUESTION, max_tokens=1, capped=True)


def _generate(engine: LlamaCppEngine) -> object:
    return engine.generate(QUESTION, max_tokens=4, capped=True)


def _score(engine: LlamaCppEngine) -> object:
    return engine.score(QUESTION, prefix="", options=["1/10", "10/10"], capped=True)


@pytest.mark.parametrize("ask", [_generate, _score])
@pytest.mark.parametrize("error", [ZeroDivisionError("in the callback"), KeyboardInterrupt()])
def test_what_the_callback_raises_comes_out_and_leaves_nothing_behind(
    gguf: Path,
    cap: Cap,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[LlamaCppEngine], object],
    error: BaseException,
) -> None:
    calls, failing = 0, 0

    def fails_once(self: CapCallback, tensor: int, block: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise error
        _original(self, tensor, block)

    monkeypatch.setattr(CapCallback, "_cap_rows", fails_once)
    with engine_of(gguf, cap) as engine:
        before = ask(engine)
        calls = 0
        assert ask(engine) == before
        for place in (2, calls):  # in the first batch after what is reused, and in the last one
            calls, failing = 0, place
            with pytest.raises(type(error)):
                ask(engine)
            assert ask(engine) == before


@pytest.mark.parametrize(
    ("values", "size_bytes", "what"),
    [(HIDDEN_SIZE * 2, HIDDEN_SIZE * 4, "half precision"), (HIDDEN_SIZE + 1, HIDDEN_SIZE * 4 + 4, "another width")],
)
def test_a_tensor_of_another_form_is_refused(
    gguf: Path, cap: Cap, monkeypatch: pytest.MonkeyPatch, values: int, size_bytes: int, what: str
) -> None:
    class OtherForm(CapCallback):
        def _count_rows(self, tensor: int, block: Any) -> int:
            library, self._library = self._library, _Reports(self._library, values, size_bytes)
            try:
                return super()._count_rows(tensor, block)
            finally:
                self._library = library

    monkeypatch.setattr(llama_cpp, "CapCallback", OtherForm)
    with engine_of(gguf, cap) as engine, pytest.raises(IntegrityError, match=rf"has {values} values in {size_bytes}"):
        engine.generate(QUESTION, max_tokens=1, capped=True)


class _Reports(ctypes.CDLL):
    """The real library, but for what it says about a tensor's size."""

    def __init__(self, library: ctypes.CDLL, values: int, size_bytes: int) -> None:
        super().__init__(library._name, handle=library._handle)
        self.ggml_nelements: Any = lambda _tensor: values
        self.ggml_nbytes: Any = lambda _tensor: size_bytes


# --- caps of other models ---


@pytest.mark.parametrize(
    ("layer", "size", "message"),
    [
        (0, HIDDEN_SIZE, r"layer 0, expected 1 to 3"),
        (BLOCKS, HIDDEN_SIZE, r"layer 4, expected 1 to 3"),
        (1, 128, r"layer 1: the direction has shape \(128,\), the model's hidden size is 256"),
    ],
)
def test_a_cap_of_another_model_is_refused(gguf: Path, layer: int, size: int, message: str) -> None:
    other = Cap({layer: unit(np.ones(size))}, {layer: 0.0}, 1.0)
    with pytest.raises(InputError, match=message):
        engine_of(gguf, other)


def test_capped_without_a_cap_is_refused(gguf: Path, ids: list[int]) -> None:
    with LlamaCppEngine(gguf, threads=1) as engine:
        assert engine.identity.axis_sha256 is None
        for ask in (
            lambda: engine.generate(QUESTION, max_tokens=1, capped=True),
            lambda: engine.score(QUESTION, prefix="", options=["1"], capped=True),
            lambda: engine.all_logits(ids, capped=True),
        ):
            with pytest.raises(InputError, match="need a cap"):
                ask()


def test_a_cap_must_name_its_file(gguf: Path, cap: Cap) -> None:
    with pytest.raises(InputError, match="cap and axis_sha256 go together"):
        LlamaCppEngine(gguf, cap=cap)
    with pytest.raises(InputError, match="cap and axis_sha256 go together"):
        LlamaCppEngine(gguf, axis_sha256=AXIS_SHA256)
