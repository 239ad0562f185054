"""The compiled callback on tensors of our own, against the formula in float64; and how it is compiled."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from karma_electric.capping import native_callback
from karma_electric.capping.formula import Cap, cap_hidden_states, unit
from karma_electric.capping.llama_cpp import CapCallback
from karma_electric.errors import IntegrityError, SetupError

BLOCKS = 12


class Tensor:
    """A named float32 tensor that a CapCallback reads and writes through C functions, as it does llama.cpp's."""

    def __init__(self, name: bytes, values: NDArray[np.float32]) -> None:
        self.type = ctypes.c_int32(0)
        self.name = ctypes.create_string_buffer(name)
        self.values = values.copy()
        self.address = ctypes.addressof(self.type)

    def functions(self) -> dict[str, Any]:
        address, data = ctypes.addressof(self.name), self.values.ctypes.data
        move = ctypes.CFUNCTYPE(None, *[ctypes.c_size_t] * 4)
        count = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_size_t)
        return {
            "get_name": count(lambda _tensor: address),
            "count_values": count(lambda _tensor: self.values.size),
            "count_bytes": count(lambda _tensor: self.values.nbytes),
            "read_tensor": move(lambda _tensor, to, offset, size: ctypes.memmove(to, data + offset, size) and None),
            "write_tensor": move(
                lambda _tensor, source, offset, size: ctypes.memmove(data + offset, source, size) and None
            ),
        }


def run(callback: CapCallback, tensor: Tensor) -> tuple[bool, bool]:
    """What the callback answers to the question and to the visit."""
    functions = tensor.functions()
    for field, function in functions.items():
        callback._state[field] = ctypes.cast(function, ctypes.c_void_p).value
    ask = callback.function(tensor.address, True, callback.user_data)
    return bool(ask), bool(callback.function(tensor.address, False, callback.user_data))


def make_callback(cap: Cap, *, max_rows: int = 8, record: bool = False) -> CapCallback:
    from karma_electric.engines.llama_cpp_binding import load_library

    size = cap.hidden_size
    return CapCallback(load_library(), cap, hidden_size=size, blocks=BLOCKS, max_rows=max_rows, record=record)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 8),
    size=st.integers(1, 67),
    alpha=st.sampled_from([1.0, 0.5, 0.01]),
    shift=st.floats(-20, 20),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_formula(rows: int, size: int, alpha: float, shift: float, scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    hidden = (random.normal(size=(rows, size)) * scale).astype(np.float32)
    cap = Cap({7: unit(random.normal(size=size) + 0.1)}, {7: shift * scale / 10}, alpha)
    callback, tensor = make_callback(cap, record=True), Tensor(b"l_out-7", hidden)
    callback.begin(rows)
    assert run(callback, tensor) == (True, True)
    expected = cap_hidden_states(hidden, cap.directions[7], tau=cap.taus[7], alpha=alpha)
    np.testing.assert_allclose(tensor.values, expected, rtol=1e-6, atol=scale * 1e-6)
    fires = hidden.astype(np.float64) @ cap.directions[7].astype(np.float64) > cap.taus[7]
    assert callback.finish().fired == fires.sum() == callback.fired_by_layer[7]
    assert callback.fired_by_row.tolist() == fires.astype(int).tolist()
    assert np.array_equal(callback.recorded[7], tensor.values)
    assert np.array_equal(tensor.values[~fires], hidden[~fires])  # no bit of what is below its ceiling


def test_a_row_gets_the_same_bits_alone_and_among_others() -> None:
    random = np.random.default_rng(3)
    hidden = random.normal(size=(8, 61)).astype(np.float32)
    cap = Cap({1: unit(random.normal(size=61))}, {1: -1.0}, 0.7)
    together, parts = Tensor(b"l_out-1", hidden), [Tensor(b"l_out-1", row[None]) for row in hidden]
    callback = make_callback(cap)
    callback.begin(8)
    run(callback, together)
    fired = callback.fired_by_row.tolist()
    callback.begin(8)  # one block's output may come in several parts
    for part in parts:
        run(callback, part)
    assert np.array_equal(np.concatenate([part.values for part in parts]), together.values)
    assert callback.fired_by_row.tolist() == fired
    assert callback.finish().positions == 8


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (b"l_out-7", True), (b"l_out-11", True), (b"l_out-1", False), (b"l_out-70", False), (b"l_out-12", False),
        (b"l_out-7 (view)", False), (b"l_out-", False), (b"l_out", False), (b"", False), (b"l_out-99999", False),
        (b"kqv_out-7", False), (b"l_out-7x", False), (b"l_out--7", False), (b"l_out-" + b"1" * 57, False),
    ],
)  # fmt: skip
def test_only_the_outputs_of_capped_blocks_are_asked_for(name: bytes, wanted: bool) -> None:
    cap = Cap({7: unit(np.ones(4)), 11: unit(np.ones(4))}, {7: 0.0, 11: 0.0}, 1.0)
    callback, tensor = make_callback(cap), Tensor(name, np.ones((1, 4), np.float32))
    callback.begin(1)
    assert run(callback, tensor)[0] == wanted
    assert bool((tensor.values != 1).any()) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: setattr(tensor.type, "value", 1), "of type 1; expected F32"),
        (lambda tensor: setattr(tensor, "values", np.ones((9, 4), np.float32)), "has 36 values in 144 bytes"),
        (lambda tensor: setattr(tensor, "values", np.ones((1, 5), np.float32)), "has 5 values in 20 bytes"),
        (lambda tensor: setattr(tensor, "values", np.ones((1, 4), np.float16)), "has 4 values in 8 bytes"),
        (lambda tensor: tensor.values.fill(np.nan), "a projection of layer 7 is not finite"),
        (lambda tensor: tensor.values.fill(np.inf), "a projection of layer 7 is not finite"),
    ],
)
def test_a_tensor_that_cannot_be_capped_stops_the_decode(change: Callable[[Tensor], object], message: str) -> None:
    callback = make_callback(Cap({7: unit(np.ones(4))}, {7: 0.0}, 1.0))
    tensor, sound = (Tensor(b"l_out-7", np.ones((1, 4), np.float32)) for _ in range(2))
    change(tensor)
    callback.begin(1)
    assert run(callback, tensor) == (True, False)
    assert run(callback, sound) == (False, False)  # nothing more in this decode
    with pytest.raises(IntegrityError, match=message):
        callback.raise_error()
    callback.begin(1)
    assert run(callback, sound) == (True, True)
    callback.raise_error()


def test_more_rows_than_promised_are_found_and_not_written_to() -> None:
    callback = make_callback(Cap({7: unit(np.ones(4))}, {7: 0.0}, 1.0))
    callback.begin(2)
    run(callback, Tensor(b"l_out-7", np.ones((3, 4), np.float32)))
    with pytest.raises(IntegrityError, match="saw 3 of 2 rows"):
        callback.finish()


# --- compiling ---


def test_without_a_place_for_the_cache_it_is_compiled_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_once, tried = native_callback._compile, []

    def no_cache(*, cached: bool) -> int:
        tried.append(cached)
        if cached:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_once(cached=False)

    monkeypatch.setattr(native_callback, "_compile", no_cache)
    assert native_callback.compiled_address.__wrapped__() > 0
    assert tried == [True, False]


def test_a_compiler_that_fails_is_a_fault_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*, cached: bool) -> int:
        raise ValueError("no LLVM\nfor you")

    monkeypatch.setattr(native_callback, "_compile", fails)
    with pytest.raises(SetupError, match=r"numba cannot compile the cap \(no LLVM\); reinstall it"):
        native_callback.compiled_address.__wrapped__()


def test_a_damaged_cache_is_not_used(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import karma_electric.capping.native_callback as c; c.compiled_address()"]
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        files = [path for path in tmp_path.rglob("*.nb*") if path.is_file()]
        assert files
        for path in files:
            path.write_bytes(b"\0" * 64)
