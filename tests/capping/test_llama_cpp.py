"""The cap in llama.cpp against PyTorch with the reference formula, and every way that it could silently not act."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
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

    class Recording(CapCallback):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs, record=True)

        def finish(self) -> CapActivity:
            for layer, states in self.recorded.items():
                if self._taus[0] == cap.taus[cap.layers[0]]:  # not while the engine proves itself
                    after[layer].append(states)
            return super().finish()

    monkeypatch.setattr(llama_cpp, "CapCallback", Recording)
    with engine_of(gguf, cap) as engine:
        engine.all_logits(ids, capped=True)
    for layer, tau in cap.taus.items():
        projections = np.concatenate(after[layer]).astype(np.float64) @ cap.directions[layer]
        assert len(projections) == len(ids)
        assert projections.max() <= tau + 1e-5
        assert projections.max() > tau - 1e-5  # it was reached, so the cap acted


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


def _counts_but_writes_nothing(callback: CapCallback) -> None:
    callback._state["write_tensor"] = callback._state["count_bytes"]


def _skips_a_layer(callback: CapCallback) -> None:
    callback._slots[2] = -1


def _caps_the_first_row_only(callback: CapCallback) -> None:
    report(callback, values=HIDDEN_SIZE, size_bytes=HIDDEN_SIZE * 4)


def _looks_for_other_names(callback: CapCallback) -> None:
    callback._state["prefix"] = list(b"layer_out-".ljust(16, b"\0"))
    callback._state["prefix_bytes"] = len(b"layer_out-")


def _has_no_state(callback: CapCallback) -> None:
    callback.user_data = 0


_kept: list[object] = []  # C functions must outlive the callbacks that call them


def report(callback: CapCallback, *, values: int, size_bytes: int) -> None:
    """Let the library say so of every tensor."""
    for field, result in (("count_values", values), ("count_bytes", size_bytes)):
        function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(lambda _tensor, result=result: result)
        _kept.append(function)
        callback._state[field] = ctypes.cast(function, ctypes.c_void_p).value


def broken(change: Callable[[CapCallback], None]) -> type[CapCallback]:
    class Broken(CapCallback):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            change(self)

    return Broken


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_counts_but_writes_nothing, "the cap does not reach the model"),
        (_skips_a_layer, "the cap of layer 2 saw 0 of 1 rows of l_out-2"),
        (_caps_the_first_row_only, "the cap of layer 1 saw 1 of 16 rows"),
        (_looks_for_other_names, "names its blocks otherwise"),
        (_has_no_state, "the cap of layer 1 saw 0 of 1 rows"),
    ],
)
def test_a_callback_that_does_not_cap_is_found_out(
    gguf: Path,
    cap: Cap,
    ids: list[int],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[CapCallback], None],
    message: str,
) -> None:
    monkeypatch.setattr(llama_cpp, "CapCallback", broken(change))
    with engine_of(gguf, cap) as engine, pytest.raises(IntegrityError, match=message):
        engine.all_logits(ids, capped=True)


def test_a_layer_that_goes_missing_later_is_found_out(gguf: Path, cap: Cap, ids: list[int]) -> None:
    with engine_of(gguf, cap) as engine:
        before = engine.all_logits(ids, capped=True)
        callback = callback_of(engine)
        callback._slots[2] = -1
        with pytest.raises(IntegrityError, match=r"the cap of layer 2 saw 0 of 16 rows of l_out-2"):
            engine.all_logits(ids, capped=True)
        callback._slots[2] = 1
        assert np.array_equal(engine.all_logits(ids, capped=True), before)


def callback_of(engine: LlamaCppEngine) -> CapCallback:
    found = engine._contexts[True].callback
    assert found is not None
    return found


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
@pytest.mark.parametrize(
    ("field", "value", "message"), [("hidden_size", 7, r"has \d+ values in"), ("taus", np.nan, "not finite")]
)
def test_what_the_callback_finds_wrong_comes_out_and_leaves_nothing_behind(
    gguf: Path,
    cap: Cap,
    monkeypatch: pytest.MonkeyPatch,
    ask: Callable[[LlamaCppEngine], object],
    field: str,
    value: float,
    message: str,
) -> None:
    calls, failing = 0, 0

    with engine_of(gguf, cap) as engine:
        expected = ask(engine)
    with engine_of(gguf, cap) as engine:
        ask(engine)
        callback = callback_of(engine)

        def fails_once(rows: int) -> None:
            nonlocal calls
            calls += 1
            CapCallback.begin(callback, rows)
            if field == "taus":
                callback.restore_taus()
            callback._state["hidden_size"] = HIDDEN_SIZE
            if calls == failing and field == "taus":
                callback.set_all_taus(value)
            elif calls == failing:
                callback._state[field] = value

        monkeypatch.setattr(callback, "begin", fails_once)
        calls = 0
        assert ask(engine) == expected
        last = calls
        for place in (2, last):  # in the first batch after what is reused, and in the last one
            calls, failing = 0, place
            with pytest.raises(IntegrityError, match=message if place == 2 else "."):
                ask(engine)
            assert ask(engine) == expected


@pytest.mark.parametrize(
    ("values", "size_bytes", "what"),
    [(HIDDEN_SIZE * 2, HIDDEN_SIZE * 4, "half precision"), (HIDDEN_SIZE + 1, HIDDEN_SIZE * 4 + 4, "another width")],
)
def test_a_tensor_of_another_form_is_refused(
    gguf: Path, cap: Cap, monkeypatch: pytest.MonkeyPatch, values: int, size_bytes: int, what: str
) -> None:
    change = partial(report, values=values, size_bytes=size_bytes)
    monkeypatch.setattr(llama_cpp, "CapCallback", broken(change))
    with engine_of(gguf, cap) as engine, pytest.raises(IntegrityError, match=rf"has {values} values in {size_bytes}"):
        engine.generate(QUESTION, max_tokens=1, capped=True)


def test_other_ceilings_hold_from_the_next_decode_on(gguf: Path, cap: Cap, ids: list[int]) -> None:
    other = Cap(cap.directions, {layer: tau - 3 for layer, tau in cap.taus.items()}, 1.0)
    with engine_of(gguf, cap) as engine, engine_of(gguf, other) as lower:
        first = engine.all_logits(ids, capped=True)
        callback_of(engine).set_taus(other.taus)
        assert np.array_equal(engine.all_logits(ids, capped=True), lower.all_logits(ids, capped=True))
        callback_of(engine).restore_taus()
        assert np.array_equal(engine.all_logits(ids, capped=True), first)
        with pytest.raises(InputError, match=r"taus for the layers \[1\], expected finite ones for \[1, 2\]"):
            callback_of(engine).set_taus({1: 0.0})


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
