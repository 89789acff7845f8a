"""Moving elements between the lanes of registers: transposes of square blocks, and interleaving.

Both are networks of two-register shuffles, log2(lanes) deep. The compiler does not find them by
itself: from a strided loop it makes one load or store a lane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import i64

__all__ = ["Matrix", "copy_transposed", "interleave", "lanes", "transpose"]


def lanes(first: Any, count: int) -> Any:
    """The indices ``first`` to ``first + count``, one a lane."""
    return tirx.Ramp(first, i64(1), count)


def transpose(
    size: int,
    dtype: str,
    load: Callable[[int], Any],
    store: Callable[[int, Any], None],
    kept: int | None = None,
) -> None:
    """Transpose a block of ``size`` x ``size`` elements (a power of two).

    ``load(i)`` is row ``i`` as a register, ``store(j, value)`` takes column ``j``: all of them, or
    the first ``kept``.
    """
    rows = _Registers(size, dtype)
    for i in range(size):
        rows.set(i, load(i))
    half = 1
    while half < size:
        # Swap the off-diagonal quarters of every 2*half x 2*half block.
        low = [j if j & half == 0 else size + j - half for j in range(size)]
        high = [j + half if j & half == 0 else size + j for j in range(size)]
        moved = _Registers(size, dtype)
        for i in range(size):
            if i & half == 0:
                pair = [rows.get(i), rows.get(i + half)]
                moved.set(i, _shuffle(pair, low))
                moved.set(i + half, _shuffle(pair, high))
        rows, half = moved, half * 2
    for j in range(kept or size):
        store(j, rows.get(j))


def interleave(size: int, dtype: str, vectors: list[Any]) -> list[Any]:
    """Registers ``a, b, ...`` (a power of two) as ``a0 b0 ... a1 b1 ...`` in as many."""
    if len(vectors) == 1:
        return vectors
    even = interleave(size, dtype, vectors[::2])
    odd = interleave(size, dtype, vectors[1::2])
    cells = _Registers(2 * len(even), dtype)
    low = [j // 2 + (j % 2) * size for j in range(size)]
    high = [size // 2 + j for j in low]
    for i, pair in enumerate(zip(even, odd, strict=True)):
        cells.set(2 * i, _shuffle(list(pair), low))
        cells.set(2 * i + 1, _shuffle(list(pair), high))
    return [cells.get(i) for i in range(2 * len(even))]


@dataclass(frozen=True)
class Matrix:
    """A matrix in memory for `copy_transposed`.

    How to reach one element, and a register of consecutive ones.

    Attributes
    ----------
    element : callable
        ``element(i, j)`` loads, or ``element(i, j, value)`` stores.
    register : callable
        The same for ``size`` elements that lie side by side: ``register(i, j, size[, value])``.
    """

    element: Callable[..., Any]
    register: Callable[..., Any]


def copy_transposed(
    rows: int, columns: int, vector: int, dtype: str, source: Matrix, target: Matrix
) -> None:
    """Copy ``source[i][j]``, columns side by side, to ``target[j][i]``, rows side by side.

    Whole blocks go through registers of ``vector`` lanes of ``dtype`` (or half of them, a quarter,
    where the matrix is smaller), what is left over goes element by element.
    """
    size = vector
    while size > 1 and (size > rows or size > columns):
        size //= 2
    if size < 4:
        size = 1
    across, down = columns // size, rows // size
    if size > 1:
        with T.grid(i64(down), i64(across)) as (a, b):
            i, j = a * i64(size), b * i64(size)
            transpose(
                size,
                f"{dtype}x{size}",
                lambda k: source.register(i + i64(k), j, size),
                lambda k, value: target.register(j + i64(k), i, size, value),
            )
    else:
        across = down = 0
    for i0, i1, j0, j1 in (
        (down * size, rows, 0, columns),
        (0, down * size, across * size, columns),
    ):
        with T.grid(i64(i1 - i0), i64(j1 - j0)) as (a, b):
            i, j = i64(i0) + a, i64(j0) + b
            target.element(j, i, source.element(i, j))


class _Registers:
    """Named registers (see `tvmconv.compute.elementary.Formula` for why they are named)."""

    def __init__(self, count: int, dtype: str) -> None:
        self._cells = T.sblock_alloc_buffer((i64(count),), dtype, scope="local")

    def get(self, index: int) -> Any:
        return self._cells[i64(index)]

    def set(self, index: int, value: Any) -> None:
        T.buffer_store(self._cells, value, [i64(index)])


def _shuffle(pair: list[Any], indices: list[int]) -> Any:
    return tirx.Shuffle(pair, [tirx.IntImm("int32", index) for index in indices])
