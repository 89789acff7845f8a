"""Arrays that threads keep: registers of one thread, and memory that a block shares.

On a CPU, where the threads of a block run one after another, each thread has its own part of a
larger array.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm.tirx.script.builder import ir as T

if TYPE_CHECKING:
    from tvmconv.compute.cuda.threads import Threads

__all__ = ["Registers", "Shared", "multiply"]


@dataclass(frozen=True)
class Registers:
    """An array of each thread, allocated in the innermost block.

    ``per_thread`` where all threads' arrays are one buffer.
    """

    buffer: Any
    shape: tuple[int, ...]
    per_thread: bool
    const: Callable[[int], Any]

    @classmethod
    def of(cls, threads: Threads, shape: tuple[int, ...], dtype: str) -> Registers:
        """Registers that live across barriers."""
        size = _product(shape) * (threads.threads if threads.serial else 1)
        buffer = T.sblock_alloc_buffer((threads.const(size),), dtype, scope="local")
        return cls(buffer, shape, threads.serial, threads.const)

    @classmethod
    def local(cls, threads: Threads, shape: tuple[int, ...], dtype: str) -> Registers:
        """Registers that no barrier comes between."""
        size = threads.const(_product(shape))
        return cls(
            T.sblock_alloc_buffer((size,), dtype, scope="local"), shape, False, threads.const
        )

    def at(self, thread: Any, *indices: Any) -> Any:
        """The element's index in the buffer."""
        flat = thread if self.per_thread else self.const(0)
        for index, extent in zip(indices, self.shape, strict=True):
            flat = flat * self.const(extent) + index
        return flat

    def load(self, thread: Any, *indices: Any) -> Any:
        """The element."""
        return self.buffer[self.at(thread, *indices)]

    def store(self, value: Any, thread: Any, *indices: Any) -> None:
        """Emit a store."""
        T.buffer_store(self.buffer, value, [self.at(thread, *indices)])


@dataclass(frozen=True)
class Shared:
    """An array of a block in shared memory; ``offset`` elements of the buffer come before it."""

    buffer: Any
    shape: tuple[int, ...]
    const: Callable[[int], Any]
    offset: int = 0

    def at(self, *indices: Any) -> Any:
        """The element's index in the buffer."""
        flat: Any = self.const(0)
        for index, extent in zip(indices, self.shape, strict=True):
            flat = flat * self.const(extent) + index
        return flat + self.const(self.offset) if self.offset else flat

    def load(self, *indices: Any) -> Any:
        """The element."""
        return self.buffer[self.at(*indices)]

    def store(self, value: Any, *indices: Any) -> None:
        """Emit a store."""
        T.buffer_store(self.buffer, value, [self.at(*indices)])


def multiply(
    threads: Threads,
    vector: int,
    left: Registers,
    right: Registers,
    sums: Registers,
    thread: Any,
    depth: int,
    sizes: tuple[int, int, int],
    operands: tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]],
    number: Any = None,
) -> None:
    """Add a slice of ``depth`` products to a thread's tile of sums.

    Parameters
    ----------
    vector
        Numbers in one load; the tile's rows and columns are vectors with a distance, so that
        neighbouring threads read neighbouring vectors.
    left, right, sums
        Registers for the rows and the columns of one step, and the sums ``[rows][columns]``.
    sizes
        Threads side by side along the columns; rows and columns of the block's tile.
    operands
        Rows and columns in shared memory: functions of step and place.
    number
        The thread's number among those that compute the tile; None: the thread.
    """
    c = threads.const
    (rows,), (columns,) = left.shape, right.shape
    across, block_rows, block_columns = sizes
    from tvmconv.compute.cuda.threads import divide

    y, x = divide(thread if number is None else number, across)
    with T.unroll(c(0), c(depth)) as k:
        for registers, own, block, place, operand in (
            (left, rows, block_rows, y, operands[0]),
            (right, columns, block_columns, x, operands[1]),
        ):
            with T.unroll(c(0), c(own // vector)) as i:
                at = i * c(block * vector // own) + place * c(vector)
                with T.vectorized(c(0), c(vector)) as v:
                    registers.store(operand(k, at + v), thread, i * c(vector) + v)
        with T.unroll(c(0), c(rows)) as i, T.unroll(c(0), c(columns)) as j:
            product = left.load(thread, i) * right.load(thread, j)
            sums.store(sums.load(thread, i, j) + product, thread, i, j)


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total
