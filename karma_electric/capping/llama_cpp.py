"""Activation capping on stock llama.cpp, through the evaluation callback of its scheduler.

The scheduler asks about every node of the graph (ask = true). Where the answer is yes it computes up to that node,
waits and calls again (ask = false); what is written then feeds both the next block's norm and the residual stream. The
node of decoder block i is named `l_out-<i>` and holds (rows, hidden_size) float32, after any control vector.

llama_decode returns 0 even when the callback failed or was never asked about a block, so every decode is accounted for:
`begin` says how many rows each capped block must see, `raise_error` raises what the callback could not, and `finish`
raises where a block saw another number of rows.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from karma_electric.capping.formula import Cap
from karma_electric.engines.llama_cpp_binding import GGML_TYPE_F32, EvalCallback, tensor_type
from karma_electric.engines.protocol import CapActivity
from karma_electric.errors import InputError, IntegrityError

FORCING_TAU = -1e6  # a ceiling far below any projection: every row is changed


@dataclass(slots=True)
class _Block:
    """One capped block: what to apply, and what this decode has seen of it."""

    layer: int
    direction: NDArray[np.float32]  # (hidden_size,), norm 1
    tau: np.float32
    rows: int = 0
    fired: int = 0


class CapCallback:
    """Caps the states of one llama.cpp context. `function` is what goes into its parameters; keep this object alive."""

    def __init__(self, library: ctypes.CDLL, cap: Cap, *, hidden_size: int, blocks: int, max_rows: int) -> None:
        check_fit(cap, hidden_size=hidden_size, blocks=blocks)
        self._get_name = library.ggml_get_name
        self._library = library
        self.caps_last_block = blocks - 1 in cap.taus
        self._alpha = np.float32(cap.alpha)
        self._taus = {layer: np.float32(cap.taus[layer]) for layer in cap.layers}
        self._blocks = {
            b"l_out-%d" % layer: _Block(layer, np.ascontiguousarray(cap.directions[layer], np.float32), tau)
            for layer, tau in self._taus.items()
        }
        self._hidden = np.empty((max_rows, hidden_size), np.float32)
        self._products = np.empty((max_rows, hidden_size), np.float32)
        self._expected_rows = 0
        self._error: BaseException | None = None
        self.function = EvalCallback(self._on_node)

    def begin(self, rows: int) -> None:
        """Before a decode in which every capped block must see `rows` rows."""
        self._expected_rows, self._error = rows, None
        for block in self._blocks.values():
            block.rows = block.fired = 0

    def raise_error(self) -> None:
        """Raise what was raised inside the callback, if anything was."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def finish(self) -> CapActivity:
        """After a decode: its activity. Raises IntegrityError where a block was missed."""
        for name, block in self._blocks.items():
            if block.rows != self._expected_rows:
                raise IntegrityError(
                    f"the cap of layer {block.layer} saw {block.rows} of {self._expected_rows} rows of "
                    f"{name.decode()}; this architecture names its blocks otherwise, and the output is not capped"
                )
        fired = sum(block.fired for block in self._blocks.values())
        return CapActivity(positions=self._expected_rows * len(self._blocks), fired=fired)

    def set_all_taus(self, tau: float) -> None:
        """One ceiling for every block, to force the cap or to rest it."""
        for block in self._blocks.values():
            block.tau = np.float32(tau)

    def restore_taus(self) -> None:
        """The ceilings of the cap again."""
        for block in self._blocks.values():
            block.tau = self._taus[block.layer]

    def _on_node(self, tensor: int, ask: bool, _user_data: int | None) -> bool:
        # Called about a thousand times a token. An exception must not leave: ctypes would drop it.
        try:
            name = self._get_name(tensor)
            if ask:
                return name in self._blocks
            self._cap_rows(tensor, self._blocks[name])
        except BaseException as error:  # KeyboardInterrupt as well; `raise_error` does it again
            self._error = self._error or error
            return False
        return True

    def _cap_rows(self, tensor: int, block: _Block) -> None:
        """h <- h - alpha * max(0, <h, v> - tau) * v, in float32, for each row of the tensor."""
        rows = self._count_rows(tensor, block)
        if rows == 0:
            return
        hidden, products = self._hidden[:rows], self._products[:rows]  # (rows, hidden_size)
        self._library.ggml_backend_tensor_get(tensor, hidden.ctypes.data, 0, hidden.nbytes)
        np.multiply(hidden, block.direction, out=products)
        # numpy sums along a contiguous row by itself: a row's projection does not depend on how many rows there are
        excess = np.maximum(products.sum(axis=1) - block.tau, np.float32(0))  # (rows,)
        block.rows += rows
        fired = int(np.count_nonzero(excess))
        if fired == 0:
            return
        block.fired += fired
        np.multiply((self._alpha * excess)[:, None], block.direction, out=products)
        np.subtract(hidden, products, out=hidden)
        self._library.ggml_backend_tensor_set(tensor, hidden.ctypes.data, 0, hidden.nbytes)

    def _count_rows(self, tensor: int, block: _Block) -> int:
        """Rows of a block's output, after its type and size were found as expected."""
        values, size_bytes = self._library.ggml_nelements(tensor), self._library.ggml_nbytes(tensor)
        max_rows, hidden_size = self._hidden.shape
        rows, rest = divmod(values, hidden_size)
        if tensor_type(tensor) != GGML_TYPE_F32 or size_bytes != values * 4 or rest or rows > max_rows:
            raise IntegrityError(
                f"the output of layer {block.layer} has {values} values in {size_bytes} bytes of type "
                f"{tensor_type(tensor)}; expected F32 in at most {max_rows} rows of {hidden_size}"
            )
        return int(rows)


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
