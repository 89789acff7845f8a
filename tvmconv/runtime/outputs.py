"""New output arrays, in memory that an earlier output of the layer no longer needs.

The system hands out large memory as pages that it clears at their first touch, one fault a page:
for a large output that costs as much as the layer itself. So the memory of a large output is kept
when the last array on it dies, and the next output of that size gets it.

The memory begins at a line of the cache, which NumPy's own rarely does: a register of 64 bytes that
lies across two lines takes two stores (6 to 9 % of a Toom-Cook layer with AVX-512).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tvmconv.errors import InputError
from tvmconv.runtime.call import address

__all__ = ["LARGE_BYTES", "Outputs", "checked_out"]

#: Smaller pieces of memory the allocator keeps by itself; these it takes from the system each time.
LARGE_BYTES: Final = 1 << 20
#: Smaller outputs are not worth the time that aligning takes.
_ALIGNED_BYTES = 1 << 14
_LINE = 64


class _Lease:
    """The owner of an output's memory: gives it back when the last array on it is gone."""

    def __init__(self, memory: np.ndarray, free: list[np.ndarray]) -> None:
        self._memory = memory
        self._free = free
        self.__array_interface__ = memory.__array_interface__

    def __del__(self) -> None:
        # One piece is kept: holding several outputs once must not cost their memory for ever.
        if not self._free:
            self._free.append(self._memory)


class Outputs:
    """The output arrays of one layer. Safe with several threads: taking from a list is atomic."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """An uninitialised array, like `numpy.empty`.

        Raises
        ------
        MemoryError, ValueError
            As `numpy.empty`.
        """
        size = dtype.itemsize
        for extent in shape:
            size *= extent
        if size < _ALIGNED_BYTES:
            return np.empty(shape, dtype)
        if size < LARGE_BYTES:
            whole, begin = _from_a_line(size)
            return np.ndarray(shape, dtype, whole, begin)
        try:
            memory = self._free.pop()
        except IndexError:
            memory = None
        if memory is None or memory.nbytes != size:
            whole, begin = _from_a_line(size)
            memory = whole[begin : begin + size]
        lease = _Lease(memory, self._free)
        return np.asarray(lease).view(dtype).reshape(shape)


def _from_a_line(size: int) -> tuple[np.ndarray, int]:
    """Memory, and the byte of it from which on so many bytes begin at a line."""
    whole = np.empty(size + _LINE, np.uint8)
    return whole, -address(whole) % _LINE


def checked_out(
    out: Any, x: np.ndarray, shape: tuple[int | None, ...], dtype: np.dtype[Any]
) -> np.ndarray:
    """``out``, if an output of this shape and dtype for ``x`` can be written there.

    Raises
    ------
    InputError
        It cannot.
    """
    # The common case first: to spell a dtype takes longer than all else here.
    if isinstance(out, np.ndarray) and out.shape == shape and out.dtype == dtype:
        flags = out.flags
        if flags.c_contiguous and flags.aligned and flags.writeable:
            if np.may_share_memory(x, out):
                message = "Expected out not to overlap the input. Received an array that does."
                raise InputError(message)
            return out
    expected = f"Expected out to be a NumPy array of shape {shape} and dtype "
    expected += f"{dtype}, dense in C order, aligned and writeable"
    if not isinstance(out, np.ndarray):
        raise InputError(f"{expected}. Received: {type(out)}")
    flags = out.flags
    raise InputError(
        f"{expected}. Received: shape={out.shape}, dtype={out.dtype}, "
        f"dense={flags.c_contiguous}, aligned={flags.aligned}, writeable={flags.writeable}"
    )
