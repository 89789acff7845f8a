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

__all__ = [
    "STORE",
    "Matrix",
    "copy_transposed",
    "interleave",
    "lanes",
    "part_of",
    "store_lanes",
    "totals",
    "transpose",
    "transpose_part",
]


#: Function of a register, its place, and the lanes that are stored, a bit each.
#: `codegen.instructions` has its code.
STORE = "store_lanes"


def store_lanes(register: Any, element: Any, bits: Any) -> None:
    """Emit the store of some lanes of a register, a bit each, from the place of ``element`` on."""
    address = tirx.address_of(element)
    T.evaluate(tirx.call_extern("int32", STORE, register, address, bits))


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


def transpose_parts(
    size: int,
    dtype: str,
    load: Callable[[int, int, int], Any],
    store: Callable[[int, Any], None],
) -> None:
    """The same where rows are loaded by parts of 128 bits, ``load(i, first, lanes)``.

    Parts that are one below the other become one register as they are loaded; only inside of 128
    bits lanes are moved. For processors that load a part to any place of a register.
    """
    for first in range(0, size, part_of(dtype)):
        transpose_part(
            size,
            dtype,
            lambda i, n, first=first: load(i, first, n),  # type: ignore[misc]
            lambda j, value, first=first: store(first + j, value),  # type: ignore[misc]
        )


def part_of(dtype: str) -> int:
    """Lanes of 128 bits."""
    return 2 if dtype.startswith("float64") else 4


def transpose_part(
    size: int, dtype: str, load: Callable[[int, int], Any], store: Callable[[int, Any], None]
) -> None:
    """Transpose ``size`` rows of 128 bits: ``load(i, lanes)`` is one, ``store`` takes a column."""
    part = part_of(dtype)
    low = [i // part * part + i % part // 2 + (i % 2) * size for i in range(size)]
    high = [place + part // 2 for place in low]
    rows = _Registers(part, dtype)
    for i in range(part):
        pieces = [load(i + below, part) for below in range(0, size, part)]
        rows.set(i, _shuffle(pieces, list(range(size))))
    half = part // 2
    while half:
        moved = _Registers(part, dtype)
        for i in range(part // 2):
            # The interleaving of rows that are ``part // 2`` apart, until each has its turn.
            pair = [rows.get(i), rows.get(i + part // 2)]
            moved.set(2 * i, _shuffle(pair, low))
            moved.set(2 * i + 1, _shuffle(pair, high))
        rows, half = moved, half // 2
    for i in range(part):
        store(i, rows.get(i))


def interleave(size: int, dtype: str, vectors: list[Any]) -> list[Any]:
    """Registers ``a, b, ...`` as ``a0 b0 ... a1 b1 ...`` in as many."""
    if len(vectors) == 1:
        return vectors
    if len(vectors) % 2:
        return _interleave_odd(size, dtype, vectors)
    even = interleave(size, dtype, vectors[::2])
    odd = interleave(size, dtype, vectors[1::2])
    cells = _Registers(2 * len(even), dtype)
    low = [j // 2 + (j % 2) * size for j in range(size)]
    high = [size // 2 + j for j in low]
    for i, pair in enumerate(zip(even, odd, strict=True)):
        cells.set(2 * i, _shuffle(list(pair), low))
        cells.set(2 * i + 1, _shuffle(list(pair), high))
    return [cells.get(i) for i in range(2 * len(even))]


def _interleave_odd(size: int, dtype: str, vectors: list[Any]) -> list[Any]:
    """The same of an odd number: the lanes of one register after the other fall into place."""
    count = len(vectors)
    cells = _Registers(count, dtype)
    for j in range(count):
        sources = [divmod(j * size + lane, count)[::-1] for lane in range(size)]
        first, *others = sorted({number for number, _ in sources})
        lanes_of_first = [lane if number == first else 0 for number, lane in sources]
        cells.set(j, _shuffle([vectors[first], vectors[first]], lanes_of_first))
        for other in others:
            chosen = [
                size + lane if number == other else place
                for place, (number, lane) in enumerate(sources)
            ]
            cells.set(j, _shuffle([cells.get(j), vectors[other]], chosen))
    return [cells.get(i) for i in range(count)]


def totals(size: int, dtype: str, vectors: list[Any]) -> Any:
    """The sum of the lanes of each register, one a lane.

    At most ``size`` registers of ``size`` lanes, both a power of two. Lanes are moved inside of 128
    bits first, then 128 bits as a whole: processors do that sooner, and need no list of lanes.
    """
    held, width, placed = vectors, size, 1
    quarter = min(size, 2 if dtype == "float64" else 4)
    while len(held) > 1:
        # Two registers become one.
        step, span = (1, quarter) if placed < quarter else (quarter, width)
        pairs = [list(pair) for pair in zip(held[::2], held[1::2], strict=True)]
        held, placed = _added(pairs, width, step, span, f"{dtype}x{width}"), 2 * placed
    while width > len(vectors):
        # The last one is folded.
        step, width = quarter if width > quarter else 1, width // 2
        kind = dtype if width == 1 else f"{dtype}x{width}"
        held = _added([held], 2 * width, step, 2 * width, kind)
    return held[0]


def _added(pairs: list[list[Any]], width: int, step: int, span: int, kind: str) -> list[Any]:
    """The even parts of ``step`` lanes of each ``span`` of the registers, plus the odd ones."""
    cells = _Registers(len(pairs), kind)
    for i, pair in enumerate(pairs):
        even, odd = (
            [
                number * width + part + first + lane
                for part in range(0, width, span)
                for number in range(len(pair))
                for first in range(odd, span, 2 * step)
                for lane in range(step)
            ]
            for odd in (0, step)
        )
        cells.set(i, _shuffle(pair, even) + _shuffle(pair, odd))
    return [cells.get(i) for i in range(len(pairs))]


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
    parts: bool = False


def copy_transposed(
    rows: int, columns: int, vector: int, dtype: str, source: Matrix, target: Matrix,
    *, along: bool = False,
) -> None:  # fmt: skip
    """Copy ``source[i][j]``, columns side by side, to ``target[j][i]``, rows side by side.

    Square blocks go through registers of ``vector`` lanes of ``dtype``, what is left over through
    half of them, a quarter; below four rows or columns element by element. A row of the target at
    a time: its lines are filled while they are in the cache; ``along`` the rows of the source,
    where the cache holds all of the target.
    """
    if rows and columns:
        _copy_part((0, rows), (0, columns), vector, dtype, source, target, along)


def _copy_part(
    rows: tuple[int, int], columns: tuple[int, int], vector: int, dtype: str,
    source: Matrix, target: Matrix, along: bool,
) -> None:  # fmt: skip
    """The same from the first of ``rows`` and ``columns`` to before the second."""
    height, width = rows[1] - rows[0], columns[1] - columns[0]
    size = vector
    while size > 1 and (size > height or size > width):
        size //= 2
    if size < 4:
        with T.grid(i64(height), i64(width)) as (a, b):
            i, j = i64(rows[0]) + a, i64(columns[0]) + b
            target.element(j, i, source.element(i, j))
        return
    counts = (i64(width // size), i64(height // size))
    with T.grid(*(counts[::-1] if along else counts)) as blocks:
        b, a = blocks[::-1] if along else blocks
        i, j = i64(rows[0]) + a * i64(size), i64(columns[0]) + b * i64(size)
        kind = f"{dtype}x{size}"

        def store(k: int, value: Any, i: Any = i, j: Any = j) -> None:
            target.register(j + i64(k), i, size, value)

        if source.parts and size > (2 if dtype == "float64" else 4):
            transpose_parts(
                size, kind, lambda k, m, n: source.register(i + i64(k), j + i64(m), n), store
            )
        else:
            transpose(size, kind, lambda k: source.register(i + i64(k), j, size), store)
    bottom, right = rows[1] - height % size, columns[1] - width % size
    if bottom < rows[1]:
        _copy_part((bottom, rows[1]), columns, size, dtype, source, target, along)
    if right < columns[1]:
        _copy_part((rows[0], bottom), (right, columns[1]), size, dtype, source, target, along)


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
