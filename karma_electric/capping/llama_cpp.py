"""Activation capping on stock llama.cpp, through the evaluation callback of its scheduler.

The scheduler asks about every node of the graph (ask = true). Where the answer is yes it computes up to that node,
waits and calls again (ask = false); what is written then feeds both the next block's norm and the residual stream. The
node of decoder block i is named `l_out-<i>` and holds (rows, hidden_size) float32, after any control vector. The
callback itself is machine code, in native_callback.py.

llama_decode returns 0 even when the callback failed or was never asked about a block, so every decode is accounted for:
`begin` says how many rows each capped block must see, `raise_error` raises what the callback found wrong, and `finish`
raises where a block saw another number of rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping import native_callback as native
from karma_electric.capping.formula import Cap
from karma_electric.engines.llama_cpp_binding import EvalCallback
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError, IntegrityError

FORCING_TAU = -1e6  # a ceiling far below any projection: every row is changed
BLOCK_OUTPUT = b"l_out-"  # the name of a decoder block's output, before its number

_LIBRARY_FUNCTIONS = {
    "get_name": "ggml_get_name",
    "count_values": "ggml_nelements",
    "count_bytes": "ggml_nbytes",
    "read_tensor": "ggml_backend_tensor_get",
    "write_tensor": "ggml_backend_tensor_set",
}


class CapCallback:
    """Caps the states of one llama.cpp context. `install` it before the context is made; keep this object alive.

    With `record`, the states of the last decode are kept as they were after the cap, read back from llama.cpp.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        cap: Cap,
        *,
        hidden_size: int,
        blocks: int,
        max_rows: int,
        record: bool = False,
    ) -> None:
        check_fit(cap, hidden_size=hidden_size, blocks=blocks)
        self.cap = cap
        self.layers = cap.layers  # in the order of the slots
        self.caps_last_block = blocks - 1 in cap.taus
        self._record = record
        self._directions = np.stack([cap.directions[layer] for layer in self.layers]).astype(np.float64)
        self._taus = np.array([cap.taus[layer] for layer in self.layers], np.float64)
        self._slots = np.full(blocks, -1, np.int32)
        self._slots[list(self.layers)] = np.arange(len(self.layers))
        self._hidden = np.empty((max_rows, hidden_size), np.float32)
        self._rows = np.zeros(len(self.layers), np.int64)
        self._fired = np.zeros(len(self.layers), np.int64)
        self._fired_by_row = np.zeros(max_rows, np.int32)
        self._states = np.empty((len(self.layers), 0, hidden_size), np.float32)
        self._state: NDArray[Any] = np.zeros(1, native.STATE)
        self._fill_state(library, blocks)
        self.function = EvalCallback(native.compiled_address())
        self.user_data = self._state.ctypes.data

    def install(self, parameters: Any) -> None:
        """Put the callback into the parameters of a context that is to be made."""
        parameters.cb_eval = self.function
        parameters.cb_eval_user_data = self.user_data

    def begin(self, rows: int) -> None:
        """Before a decode in which every capped block must see `rows` rows."""
        self._rows[:] = 0
        self._fired[:] = 0
        self._fired_by_row = np.zeros(rows, np.int32)
        self._set("expected_rows", rows)
        self._set("fired_by_row", self._fired_by_row.ctypes.data)
        self._set("fault", native.NO_FAULT)
        if self._record:
            self._states = np.full((len(self.layers), rows, self._hidden.shape[1]), np.nan, np.float32)
            self._set("record", self._states.ctypes.data)

    def raise_error(self) -> None:
        """Raise what the callback found wrong, if anything was."""
        state = self._state[0]
        fault, layer = int(state["fault"]), int(state["fault_layer"])
        if fault == native.FAULT_FORM:
            max_rows, hidden_size = self._hidden.shape
            raise IntegrityError(
                f"the output of layer {layer} has {state['fault_values']} values in {state['fault_bytes']} bytes of "
                f"type {state['fault_type']}; expected F32 in at most {max_rows} rows of {hidden_size}"
            )
        if fault != native.NO_FAULT:
            raise IntegrityError(f"a projection of layer {layer} is not finite; the model is broken")

    def finish(self) -> CapActivity:
        """After a decode: its activity. Raises IntegrityError where a block was missed."""
        expected = len(self._fired_by_row)
        for layer, rows in zip(self.layers, self._rows.tolist(), strict=True):
            if rows != expected:
                raise IntegrityError(
                    f"the cap of layer {layer} saw {rows} of {expected} rows of {BLOCK_OUTPUT.decode()}{layer}; "
                    "this architecture names its blocks otherwise, and the output is not capped"
                )
        return CapActivity(positions=expected * len(self.layers), fired=int(self._fired.sum()))

    @property
    def fired_by_row(self) -> NDArray[np.int32]:
        """Of the last decode: in how many layers the cap acted on each row, (rows,), in the order of the batch.

        llama.cpp keeps that order where the context has one unified memory for all sequences.
        """
        return self._fired_by_row

    @property
    def fired_by_layer(self) -> dict[int, int]:
        """Of the last decode: on how many rows the cap acted in each layer."""
        return dict(zip(self.layers, self._fired.tolist(), strict=True))

    @property
    def recorded(self) -> Mapping[int, NDArray[np.float32]]:
        """Of the last decode, with `record`: layer -> states after the cap, (rows, hidden_size)."""
        return dict(zip(self.layers, self._states, strict=True))

    def set_taus(self, taus: Mapping[int, float]) -> None:
        """Other ceilings for the same layers, from the next decode on. Raises InputError where the layers differ."""
        if set(taus) != set(self.layers) or not all(np.isfinite(tau) for tau in taus.values()):
            raise InputError(f"taus for the layers {sorted(taus)}, expected finite ones for {list(self.layers)}")
        self._taus[:] = [taus[layer] for layer in self.layers]

    def set_all_taus(self, tau: float) -> None:
        """One ceiling for every block, to force the cap or to rest it."""
        self._taus[:] = tau

    def restore_taus(self) -> None:
        """The ceilings of the cap again."""
        self._taus[:] = [self.cap.taus[layer] for layer in self.layers]

    def _fill_state(self, library: ctypes.CDLL, blocks: int) -> None:
        for field, name in _LIBRARY_FUNCTIONS.items():
            self._set(field, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
        self._state[0]["prefix"][: len(BLOCK_OUTPUT)] = list(BLOCK_OUTPUT)
        self._set("prefix_bytes", len(BLOCK_OUTPUT))
        self._set("blocks", blocks)
        self._set("alpha", self.cap.alpha)
        self._set("max_rows", self._hidden.shape[0])
        self._set("hidden_size", self._hidden.shape[1])
        for field in ("slots", "directions", "taus", "hidden", "rows", "fired"):
            self._set(field, getattr(self, f"_{field}").ctypes.data)

    def _set(self, field: str, value: object) -> None:
        self._state[0][field] = value


def check_fit(cap: Cap, *, hidden_size: int, blocks: int) -> None:
    """Refuse a cap that is not for a model of this width and depth."""
    for layer in cap.layers:
        if not 0 < layer < blocks:
            raise InputError(f"the cap names layer {layer}, expected 1 to {blocks - 1}; use the axis of this model")
        direction = cap.directions[layer]
        if direction.shape != (hidden_size,):
            raise InputError(
                f"layer {layer}: the direction has shape {direction.shape}, the model's hidden size is {hidden_size}; "
                "use the axis of this model"
            )
