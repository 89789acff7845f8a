"""A warp's sums on tensor cores by ``mma.sync``: intrinsics of our own, or loops in their place.

Unlike a fragment of WMMA's, the PTX ISA says which thread holds which sum: of each tile of 16
voxels and 8 columns, thread ``lane`` has the voxels ``lane / 4`` and 8 more, and the columns
``2 * (lane % 4)`` and the next. In serial loops the first thread of a warp does what the warp does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.fragments import WARP
from tvmconv.compute.cuda.operands import CHUNKS, Rows
from tvmconv.compute.cuda.threads import divide
from tvmconv.compute.element import tf32, widen

if TYPE_CHECKING:
    from tvmconv.compute.cuda.registers import Registers, Shared
    from tvmconv.compute.cuda.threads import Threads

__all__ = ["TILE_COLUMNS", "TILE_ROWS", "WarpSums", "call"]

TILE_ROWS, TILE_COLUMNS = 16, 8
_HALF, _PAIR = 8, 2
#: Steps of the tensor cores in a row of channels, of two chunks each.
_STEPS = 2
_NAMES = {"float16": "float16", "bfloat16": "bfloat16", "float32": "tf32"}
#: Tiles whose columns of one thread are neighbours, see `tvmconv.compute.cuda.operands`.
_TILES = 4

#: ``(row or column of the tile, chunk of 16 bytes)`` to an index in shared memory.
Place = Callable[[Any, Any], Any]


def call(name: str, *arguments: Any) -> None:
    """A call of a function of codegen/cuda/tensor.cuh."""
    T.evaluate(T.call_extern("void", name, *arguments))


@dataclass(frozen=True)
class WarpSums:
    """``rows`` x ``columns`` tiles of a warp, as each thread has them.

    For `tvmconv.compute.cuda.store`, ``shape`` and ``load`` give a thread's voxels x columns.
    """

    threads: Threads
    rows: int
    columns: int
    registers: Registers

    @classmethod
    def of(cls, threads: Threads, rows: int, columns: int) -> WarpSums:
        """Allocate them in the innermost block."""
        registers = threads.registers((rows, columns, 4), "float32")
        return cls(threads, rows, columns, registers)

    @property
    def shape(self) -> tuple[int, ...]:
        """A thread's voxels and columns."""
        return self.rows * 2, self.columns * _PAIR

    def _at(self, voxel: Any, column: Any) -> tuple[Any, Any, Any]:
        """Tiles and register of a thread's voxel and column."""
        c = self.threads.const
        row, upper = divide(voxel, 2)
        group, own = divide(column, _TILES * _PAIR)
        tile, pair = divide(own, _PAIR)
        return row, group * c(_TILES) + tile, upper * c(2) + pair

    def load(self, thread: Any, *indices: Any) -> Any:
        """The sum of a thread's voxel and column."""
        return self.registers.load(thread, *self._at(*indices))

    def store(self, value: Any, thread: Any, *indices: Any) -> None:
        """Emit a store of it."""
        self.registers.store(value, thread, *self._at(*indices))

    def row(self, lane: Any, voxel: Any) -> Any:
        """The place in the warp's rows of a thread's voxel."""
        c = self.threads.const
        return voxel * c(_HALF) + divide(lane, CHUNKS)[0]

    def column(self, lane: Any, column: Any) -> Any:
        """The place among the warp's columns, as they are in the output, of a thread's column."""
        c = self.threads.const
        group, own = divide(column, _TILES * _PAIR)
        return (group * c(CHUNKS) + divide(lane, CHUNKS)[1]) * c(_TILES * _PAIR) + own

    def multiply(
        self, thread: Any, operands: Rows, left: tuple[Shared, Place], right: tuple[Shared, Place]
    ) -> None:
        """Add the products of one row of channels.

        Parameters
        ----------
        operands
            What they are.
        left, right
            Inputs and weights: where they are in shared memory, and functions of a place among the
            warp's voxels (columns) and a chunk.
        """
        c = self.threads.const
        if self.threads.serial:
            first = tirx.truncmod(thread, c(WARP)) == c(0)
            with T.If(first), T.Then():
                self._serial(thread, operands, left, right)
            return
        # A thread gives the address of one of four matrices' rows.
        matrix, place = divide(divide(thread, WARP)[1], _HALF)
        second, lower = divide(matrix, 2)
        name = _NAMES[operands.folded.input_dtype]
        # Weights were rounded when they were packed.
        load = "tensor_load_tf32" if name == "tf32" else "tensor_load"
        a = T.sblock_alloc_buffer((c(self.rows * _STEPS * 4),), "uint32", scope="local")
        b = T.sblock_alloc_buffer((c(self.columns * _STEPS * 2),), "uint32", scope="local")
        with T.unroll(c(0), c(self.rows)) as i, T.unroll(c(0), c(_STEPS)) as s:
            at = left[1](i * c(TILE_ROWS) + lower * c(_HALF) + place, s * c(2) + second)
            to = a[(i * c(_STEPS) + s) * c(4)]
            call(load, T.address_of(to), T.address_of(left[0].buffer[at]))
        with T.unroll(c(0), c(self.columns)) as j:
            at = right[1](j * c(TILE_COLUMNS) + place, matrix)
            call("tensor_load", T.address_of(b[j * c(4)]), T.address_of(right[0].buffer[at]))
        call(
            f"tensor_multiply_{name}<{self.rows}, {self.columns}>",
            self.registers.buffer.data, a.data, b.data,
        )  # fmt: skip

    def _serial(
        self, thread: Any, operands: Rows, left: tuple[Shared, Place], right: tuple[Shared, Place]
    ) -> None:
        c = self.threads.const
        dtype = operands.folded.input_dtype

        def value(operand: tuple[Shared, Place], place: Any, channel: Any, rounds: bool) -> Any:
            chunk, own = divide(channel, operands.chunk)
            wide = widen(operand[0].buffer[operand[1](place, chunk) + own], dtype, "float32")
            return tf32(wide) if rounds else wide

        extents = (self.rows, 2, _HALF, self.columns, CHUNKS, _PAIR, operands.depth)
        with T.grid(*map(c, extents)) as (i, upper, row, j, quarter, pair, k):
            x = value(left, (i * c(2) + upper) * c(_HALF) + row, k, dtype == "float32")
            place = j * c(TILE_COLUMNS) + quarter * c(_PAIR) + pair
            w = value(right, place, k, rounds=False)
            holder = thread + row * c(CHUNKS) + quarter
            where = (i, j, upper * c(2) + pair)
            total = self.registers.load(holder, *where) + x * w
            self.registers.store(total, holder, *where)
