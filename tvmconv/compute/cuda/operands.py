"""Operands of tensor cores in shared memory: rows of 64 bytes, 32 half-width or 16 wide numbers.

A row is a voxel's inputs or a column's weights, channel after channel: two steps of the tensor
cores. Its pieces of 16 bytes are turned by the row's number, so that eight rows' pieces, which are
loaded together, lie in different banks.

Columns are in an order by which a thread's sums are neighbours in the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from tvmconv.compute.cuda.threads import divide
from tvmconv.compute.element import narrow, round_tf32, storage, tf32
from tvmconv.compute.workload import Workload
from tvmconv.policies import numpy_dtype

__all__ = ["CHUNKS", "COLUMNS", "ROW_BYTES", "Rows"]

CHUNKS = 4
"""Pieces of 16 bytes in a row."""
_CHUNK_BYTES = 16
ROW_BYTES = CHUNKS * _CHUNK_BYTES
"""Bytes of a row."""
COLUMNS = 32
"""Columns among which the order changes; there is a multiple of so many."""
#: Neighbouring columns of one thread, in pairs of the tensor cores' tiles of eight columns.
_TOGETHER = 8


@dataclass(frozen=True)
class Rows:
    """The packed weights of a (folded) workload, ``[tap][row of channels][column][channel]``.

    float32 is rounded to TF32.
    """

    folded: Workload

    @property
    def dtype(self) -> str:
        """What is stored."""
        return storage(self.folded.input_dtype)

    @property
    def bytes(self) -> int:
        """Of a number."""
        return np.dtype(self.dtype).itemsize

    @property
    def chunk(self) -> int:
        """Numbers of a piece of 16 bytes."""
        return _CHUNK_BYTES // self.bytes

    @property
    def depth(self) -> int:
        """Numbers of a row."""
        return CHUNKS * self.chunk

    @property
    def columns(self) -> int:
        """Columns, padding included."""
        return -(-self.folded.plan.filters // COLUMNS) * COLUMNS

    @property
    def across(self) -> int:
        """Rows of all channels of a tap, padding included."""
        return -(-self.folded.plan.in_channels // self.depth)

    @property
    def channels(self) -> int:
        """Channels, padding included."""
        return self.across * self.depth

    @property
    def size(self) -> int:
        """Numbers of all weights."""
        return math.prod(self.folded.plan.kernel_shape[:3]) * self.channels * self.columns

    def at(self, tap: Any, channel: Any, column: Any) -> Any:
        """The place of a weight, as an expression."""

        def const(value: int) -> Any:
            return tirx.IntImm(str(tap.ty), value)

        row, inside = divide(channel, self.depth)
        group, own = divide(column, COLUMNS)
        quarter, own = divide(own, _TOGETHER)
        tile, pair = divide(own, 2)
        place = ((group * const(4) + tile) * const(4) + quarter) * const(2) + pair
        flat = (tap * const(self.across) + row) * const(self.columns) + place
        return flat * const(self.depth) + inside

    def rounded(self, value: Any) -> Any:
        """An expression of a weight as it is stored."""
        if self.folded.input_dtype == "float32":
            return tf32(value)
        return narrow(value, self.folded.input_dtype)

    def arrange(self, weights: np.ndarray) -> np.ndarray:
        """The same in NumPy: from ``[tap][channel][column]``, flat, in the accumulation dtype."""
        plan = self.folded.plan
        taps = math.prod(plan.kernel_shape[:3])
        wide = np.zeros((taps, self.channels, self.columns), weights.dtype)
        wide[:, : plan.in_channels] = weights.reshape(taps, plan.in_channels, self.columns)
        cut = wide.reshape(
            taps, self.across, self.depth, self.columns // COLUMNS, 4, _TOGETHER // 2, 2
        )
        ordered = cut.transpose(0, 1, 3, 5, 4, 6, 2).ravel()
        if self.folded.input_dtype == "float32":
            return round_tf32(ordered)
        with np.errstate(over="ignore"):
            return ordered.astype(numpy_dtype(self.folded.input_dtype))
