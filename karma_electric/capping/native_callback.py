"""The evaluation callback of a capped llama.cpp context, as machine code: no Python runs while a graph is computed.

llama.cpp asks about every node, some thousand times a token. numba compiles the function below, and what it works on
stands in one C struct (STATE) behind `user_data`: the addresses of the library's functions, the cap, and what the
current decode has seen. Nothing is raised in here; a fault is written into the struct.

Projections are sums in float64, in a fixed order without fused multiply-adds: the same bits on every machine. The
tensor is read and written through the library, so that it may lie in the memory of any backend.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, Final

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from karma_electric.errors import SetupError

_logger = logging.getLogger(__name__)

GGML_TYPE_F32: Final = 0  # stands here as well, because numba's cache knows of changes in this file only
MAX_NAME_BYTES: Final = 64  # GGML_MAX_NAME, with the closing NUL
MAX_DIGITS: Final = 4

# What `fault` says. After a fault nothing more is capped in this decode.
NO_FAULT: Final = 0
FAULT_FORM: Final = 1  # another type, width or number of rows
FAULT_NOT_FINITE: Final = 2  # a projection is NaN or infinite

# Addresses are of contiguous arrays that the owner of the struct keeps alive; `slots` stands for a capped block.
STATE: Final = np.dtype(
    [
        ("get_name", np.uint64),  # addresses of functions of the library
        ("count_values", np.uint64),
        ("count_bytes", np.uint64),
        ("read_tensor", np.uint64),
        ("write_tensor", np.uint64),
        ("prefix", np.uint8, (16,)),  # of the name of a block's output, before its number
        ("prefix_bytes", np.int64),
        ("blocks", np.int64),  # of the model
        ("slots", np.uint64),  # int32 (blocks,): slot of each block, -1 where it is not capped
        ("directions", np.uint64),  # float64 (slots, hidden_size), norm 1
        ("taus", np.uint64),  # float64 (slots,)
        ("alpha", np.float64),
        ("hidden_size", np.int64),
        ("max_rows", np.int64),  # of one tensor
        ("hidden", np.uint64),  # float32 (max_rows, hidden_size), to work in
        ("expected_rows", np.int64),  # of this decode, over all its tensors of one block
        ("rows", np.uint64),  # int64 (slots,): seen in this decode
        ("fired", np.uint64),  # int64 (slots,)
        ("fired_by_row", np.uint64),  # int32 (expected_rows,), over all slots
        ("record", np.uint64),  # float32 (slots, expected_rows, hidden_size), the states after the cap; 0: don't keep
        ("fault", np.int64),
        ("fault_layer", np.int64),
        ("fault_values", np.int64),
        ("fault_bytes", np.int64),
        ("fault_type", np.int64),
    ],
    align=True,
)


@functools.cache
def compiled_address() -> int:
    """The address of `bool callback(struct ggml_tensor *, bool ask, void *user_data)`, the same all through a process.

    Raises SetupError where numba cannot compile it.
    """
    try:
        return _compile(cached=True)
    except Exception as error:
        _logger.debug("the compiled cap cannot be kept on disk (%s); compiled for this process only", error)
    try:
        return _compile(cached=False)
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SetupError(f"numba cannot compile the cap ({first_line}); reinstall it: `make install`") from error


def _compile(*, cached: bool) -> int:
    """With `cached`, machine code of an earlier process is used: it is kept beside this file, or where the user's
    caches are, under this file's time and size and this CPU's type. It saves a second; without it nothing differs."""
    signature = types.uint8(types.uintp, types.uint8, types.uintp)
    return int(numba.cfunc(signature, error_model="numpy", cache=cached)(_on_node).address)


def _function_call(result: types.Type, arguments: int) -> Any:
    """An intrinsic f(address, arg0, ...) that calls the C function at `address`; all are as wide as a pointer."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        word = context.get_value_type(types.uintp)
        c_result = ir.VoidType() if result == types.void else word
        pointer = builder.inttoptr(values[0], ir.FunctionType(c_result, [word] * arguments).as_pointer())
        found = builder.call(pointer, values[1:])
        return context.get_dummy_value() if result == types.void else found

    def call_with_one(_typing: Any, address: Any, first: Any) -> Any:
        return result(types.uintp, types.uintp), generate

    def call_with_four(_typing: Any, address: Any, first: Any, second: Any, third: Any, fourth: Any) -> Any:
        return result(*[types.uintp] * 5), generate

    return intrinsic(call_with_one if arguments == 1 else call_with_four)


_ask_word = _function_call(types.intp, 1)
_ask_address = _function_call(types.uintp, 1)
_move_bytes = _function_call(types.void, 4)


def _pointer(_typing: Any, address: Any) -> Any:
    """An intrinsic: an address as the pointer that `carray` wants."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.uintp), generate


_at = intrinsic(_pointer)


def _on_node(tensor: Any, ask: Any, user_data: Any) -> Any:
    if user_data == 0:
        return 0
    state = carray(_at(user_data), 1, STATE)[0]
    if state.fault != NO_FAULT:
        return 0

    # The slot of the node `<prefix><layer>`, or -1.
    name = carray(_at(_ask_address(state.get_name, tensor)), MAX_NAME_BYTES, np.uint8)
    place, layer = 0, 0
    while place < state.prefix_bytes:
        if name[place] != state.prefix[place]:
            return 0 if ask else 1
        place += 1
    first_digit = place
    while 48 <= name[place] <= 57 and place - first_digit < MAX_DIGITS:
        layer = layer * 10 + (name[place] - 48)
        place += 1
    if name[place] != 0 or place == first_digit or layer >= state.blocks:
        return 0 if ask else 1
    slot = carray(_at(state.slots), state.blocks, np.int32)[layer]
    if ask or slot < 0:
        return 1 if (slot >= 0) == (ask != 0) else 0

    hidden_size = state.hidden_size
    values = _ask_word(state.count_values, tensor)
    size_bytes = _ask_word(state.count_bytes, tensor)
    tensor_type = carray(_at(tensor), 1, np.int32)[0]
    rows = values // hidden_size
    if (
        tensor_type != GGML_TYPE_F32
        or size_bytes != values * 4
        or rows * hidden_size != values
        or rows > state.max_rows
    ):
        state.fault, state.fault_layer, state.fault_values = FAULT_FORM, layer, values
        state.fault_bytes, state.fault_type = size_bytes, tensor_type
        return 0
    rows_seen = carray(_at(state.rows), 1 + slot, np.int64)
    start = rows_seen[slot]
    rows_seen[slot] += rows
    if rows == 0 or start + rows > state.expected_rows:
        return 1  # too many rows are found after the decode, like too few

    hidden = carray(_at(state.hidden), (rows, hidden_size), np.float32)
    direction = carray(_at(state.directions), (1 + slot, hidden_size), np.float64)[slot]
    tau = carray(_at(state.taus), 1 + slot, np.float64)[slot]
    fired_by_row = carray(_at(state.fired_by_row), state.expected_rows, np.int32)
    _move_bytes(state.read_tensor, tensor, state.hidden, 0, size_bytes)
    fired = 0
    whole = hidden_size - hidden_size % 4
    for row in range(rows):
        state_row = hidden[row]
        sum_0, sum_1, sum_2, sum_3 = 0.0, 0.0, 0.0, 0.0  # four sums that do not wait for each other
        for index in range(0, whole, 4):
            sum_0 += np.float64(state_row[index]) * direction[index]
            sum_1 += np.float64(state_row[index + 1]) * direction[index + 1]
            sum_2 += np.float64(state_row[index + 2]) * direction[index + 2]
            sum_3 += np.float64(state_row[index + 3]) * direction[index + 3]
        for index in range(whole, hidden_size):
            sum_0 += np.float64(state_row[index]) * direction[index]
        excess = (sum_0 + sum_1) + (sum_2 + sum_3) - tau
        if excess - excess != 0.0:  # NaN or infinite
            state.fault, state.fault_layer = FAULT_NOT_FINITE, layer
            return 0
        if excess > 0.0:
            step = state.alpha * excess
            for index in range(hidden_size):
                state_row[index] = np.float32(np.float64(state_row[index]) - step * direction[index])
            fired += 1
            fired_by_row[start + row] += 1
    if fired > 0:
        _move_bytes(state.write_tensor, tensor, state.hidden, 0, size_bytes)
        carray(_at(state.fired), 1 + slot, np.int64)[slot] += fired
    if state.record != 0:
        offset = (slot * state.expected_rows + start) * hidden_size * 4
        _move_bytes(state.read_tensor, tensor, state.record + np.uint64(offset), 0, size_bytes)
    return 1
