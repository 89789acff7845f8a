"""Matrix fragments of tensor cores: TVM's WMMA intrinsics, or the loops that they stand for.

A warp of 32 threads holds a 16 x 16 tile of sums together. In serial loops, for a CPU, its first
thread does what the warp does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

if TYPE_CHECKING:
    from tvmconv.compute.cuda.registers import Shared
    from tvmconv.compute.cuda.threads import Threads

__all__ = ["SIDE", "WARP", "Fragments"]

SIDE = 16
WARP = 32
_TILE = SIDE * SIDE


@dataclass(frozen=True)
class Fragments:
    """The sums of a warp: ``rows`` x ``columns`` tiles, and the operands of one step.

    Parameters
    ----------
    threads
        The kernel.
    rows, columns
        Tiles of a warp.
    dtype : str
        Of the operands.
    left_by_columns : bool
        Whether the left operand's rows lie side by side in memory.
    """

    threads: Threads
    rows: int
    columns: int
    dtype: str
    left_by_columns: bool
    sums: Any
    left: Any
    right: Any

    @classmethod
    def of(
        cls, threads: Threads, rows: int, columns: int, dtype: str, *, left_by_columns: bool
    ) -> Fragments:
        """Allocate them in the innermost block."""

        def allocate(tiles: int, kind: str, scope: str) -> Any:
            size = threads.const(tiles * _TILE)
            return T.sblock_alloc_buffer((size,), kind, scope=scope)

        if threads.serial:
            warps = threads.threads // WARP
            sums = allocate(rows * columns * warps, "float32", "local")
            return cls(threads, rows, columns, dtype, left_by_columns, sums, None, None)
        return cls(
            threads,
            rows,
            columns,
            dtype,
            left_by_columns,
            allocate(rows * columns, "float32", "wmma.accumulator"),
            allocate(rows, dtype, "wmma.matrix_a"),
            allocate(1, dtype, "wmma.matrix_b"),
        )

    def clear(self, thread: Any) -> None:
        """All sums = 0."""
        c = self.threads.const
        with T.unroll(c(0), c(self.rows * self.columns)) as tile:
            if self.threads.serial:
                with self._first(thread), T.serial(c(0), c(_TILE)) as i:
                    at = self._tile(thread, tile) + i
                    T.buffer_store(self.sums, tirx.const(0, "float32"), [at])
            else:
                T.evaluate(
                    T.tvm_fill_fragment(self.sums.data, SIDE, SIDE, SIDE, tile, T.float32(0))
                )

    def multiply(
        self,
        thread: Any,
        left: tuple[Shared, Callable[[Any], Any]],
        right: tuple[Shared, Callable[[Any], Any]],
        strides: tuple[int, int],
    ) -> None:
        """Add 16 products a sum.

        Parameters
        ----------
        left, right
            The operands in shared memory, and where the tile of a row (column) of tiles begins.
        strides
            Distance of the rows (columns, where they lie side by side) of each operand.
        """
        c = self.threads.const
        if self.threads.serial:
            with self._first(thread), T.grid(c(self.rows), c(self.columns)) as (i, j):
                with T.grid(c(SIDE), c(SIDE), c(SIDE)) as (a, b, k):
                    across = (k, a) if self.left_by_columns else (a, k)
                    x = left[0].buffer[left[1](i) + across[0] * c(strides[0]) + across[1]]
                    w = right[0].buffer[right[1](j) + k * c(strides[1]) + b]
                    at = self._tile(thread, i * c(self.columns) + j) + a * c(SIDE) + b
                    product = self._wide(x) * self._wide(w)
                    T.buffer_store(self.sums, self.sums[at] + product, [at])
            return
        order = "col_major" if self.left_by_columns else "row_major"
        with T.unroll(c(0), c(self.rows)) as i:
            self._load(self.left, i, left[0].buffer, left[1](i), strides[0], order)
        with T.unroll(c(0), c(self.columns)) as j:
            self._load(self.right, c(0), right[0].buffer, right[1](j), strides[1], "row_major")
            with T.unroll(c(0), c(self.rows)) as i:
                at = i * c(self.columns) + j
                T.evaluate(
                    T.tvm_mma_sync(
                        self.sums.data, at, self.left.data, i, self.right.data, c(0),
                        self.sums.data, at,
                    )
                )  # fmt: skip

    def store(self, thread: Any, tile: Any, to: Shared, at: Any, stride: int) -> None:
        """A tile of sums to shared memory, row by row."""
        c = self.threads.const
        if self.threads.serial:
            with self._first(thread), T.grid(c(SIDE), c(SIDE)) as (a, b):
                value = self.sums[self._tile(thread, tile) + a * c(SIDE) + b]
                T.buffer_store(to.buffer, value, [at + a * c(stride) + b])
            return
        T.evaluate(
            T.tvm_store_matrix_sync(
                self.sums.data, SIDE, SIDE, SIDE, tile, T.address_of(to.buffer[at]), stride,
                "row_major",
            )
        )  # fmt: skip

    def _load(
        self, fragment: Any, index: Any, buffer: Any, at: Any, stride: int, order: str
    ) -> None:
        T.evaluate(
            T.tvm_load_matrix_sync(
                fragment.data, SIDE, SIDE, SIDE, index, T.address_of(buffer[at]), stride, order
            )
        )

    def _wide(self, value: Any) -> Any:
        from tvmconv.compute.element import widen

        return widen(value, self.dtype, "float32")

    def _first(self, thread: Any) -> Any:
        """The first thread of a warp alone."""
        c = self.threads.const
        return self.threads.when(tirx.truncmod(thread, c(WARP)) == c(0))

    def _tile(self, thread: Any, tile: Any) -> Any:
        c = self.threads.const
        warp = tirx.truncdiv(thread, c(WARP))
        return (warp * c(self.rows * self.columns) + tile) * c(_TILE)
