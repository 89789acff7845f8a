"""What happens to an output row that cannot leave the register tile finished.

Channels-first rows, and rows over which an activation mixes values (softmax, log_softmax,
sparsemax, glu along the channels or the width), are collected in scratch as ``[voxel][channel]``
and written here. An activation that mixes over more than a row runs once over the whole output
after the last tile (`whole`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Var
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import streaming
from tvmconv.compute.activation import elementwise, sigmoid
from tvmconv.compute.element import narrow, storage, widen
from tvmconv.compute.elementary import Formula, exp, log
from tvmconv.compute.frame import LINE_BYTES, Frame, Region, Row, buffer, divide, i64, prim_func
from tvmconv.compute.shuffle import Matrix, copy_transposed, part_of, transpose, transpose_part
from tvmconv.compute.workload import Workload
from tvmconv.policies import numpy_dtype

__all__ = [
    "active",
    "chunks",
    "emit",
    "is_long",
    "mix",
    "needs_line",
    "piece",
    "result",
    "rounded",
    "unfinished",
    "whole",
]

#: Activations of a few instructions; every other one has an exponential or a logarithm in it.
_SHORT = {
    "hard_shrink", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "linear", "relu",
    "relu6", "soft_shrink", "softsign", "sparse_plus", "sparse_sigmoid", "squareplus", "threshold",
}  # fmt: skip


def needs_line(work: Workload) -> bool:
    """Whether output rows pass through scratch."""
    return work.plan.channels_first or work.row_axis is not None


def emit(frame: Frame, row: Row, line: Region, vector: int, first: Any = 0, voxel: Any = 0) -> None:
    """Write the finished row, or its part from ``voxel`` on, with the channels from ``first`` on.

    Whole rows where an activation mixes values.
    """
    work = frame.work
    voxels, channels = line.shape
    if work.row_axis is not None:
        channel_axis = 1 if work.plan.channels_first else 4
        over_channels = work.row_axis == channel_axis
        outer, inner = (voxels, channels) if over_channels else (channels, voxels)

        def load(i: Any, j: Any) -> Any:
            return line.load(i, j) if over_channels else line.load(j, i)

        def store(value: Any, i: Any, j: Any) -> None:
            w, c = (i, j) if over_channels else (j, i)
            frame.output(value, row.n, (row.od, row.oh, w), c + first)

        with T.serial(i64(0), i64(outer)) as i:
            mix(
                work,
                [inner],
                lambda j: load(i, j[0]),
                lambda value, j: store(value, i, j[0]),
            )
        return
    if is_long(work):
        _activate(frame, row, line, vector)
        if not work.plan.channels_first:
            return
    _transposed(frame, (row.n, row.od, row.oh, voxel), first, line, line.shape, vector)


def piece(
    frame: Frame, place: tuple[Any, Any, Any, Any], channel: Any, line: Region,
    size: tuple[int, int], vector: int, *, few: bool = False, past: bool = False,
) -> None:  # fmt: skip
    """Finish a part of a channels-first row, ``size`` voxels and channels, and write it.

    It begins with ``place``, the sample and the voxel, and ``channel``, and lies where ``line``
    begins, as `unfinished` left it. ``few``: lines are stored whole even where the channels are
    fewer than the lanes of a register. ``past``: past the caches; all registers are lines.
    """
    if is_long(frame.work):
        last = active(frame.work, (size[1],))
        with T.serial(i64(0), i64(size[0])) as w, T.vectorized(i64(0), i64(size[1])) as v:
            line.store(last.at(line.load(w, v), v), w, v)
    _transposed(frame, place, channel, line, size, vector, few=few, past=past)


def _transposed(
    frame: Frame, place: tuple[Any, Any, Any, Any], channel: Any, line: Region,
    size: tuple[int, ...], vector: int, *, few: bool = False, past: bool = False,
) -> None:  # fmt: skip
    """Write ``size`` voxels and channels of ``line``, rounded, to ``place`` and ``channel``."""
    n, od, oh, voxel = place
    dtype, wide = frame.work.output_dtype, frame.work.accumulate_dtype

    def put(c: Any, w: Any, value: Any) -> None:
        frame.output(value, n, (od, oh, w + voxel), c + channel)

    def put_register(c: Any, w: Any, size: int, value: Any) -> None:
        narrowed = value if dtype == wide else value.astype(f"{dtype}x{size}")
        if past:
            index = (n, c + channel, od, oh, w + voxel)
            streaming.put(frame, narrowed, size, frame.y[index])
            return
        put(c, tirx.Ramp(w, i64(1), size), narrowed)

    rounded = Formula(lambda x: narrow(x, dtype), wide, (1,))
    source = Matrix(
        lambda w, c: rounded.at(line.load(w, c), i64(0)),
        lambda w, c, size: line.buffer[tirx.Ramp(line.at(w, c), i64(1), size)],
    )
    # bfloat16 is narrowed element by element.
    most = 1 if dtype == "bfloat16" else vector
    part = part_of(wide)
    if few and size[1] < most and size[1] % part == 0 and size[0] % most == 0:
        for w, c in itertools.product(range(0, size[0], most), range(0, size[1], part)):
            transpose_part(
                most, f"{wide}x{most}",
                lambda k, n, w=w, c=c: source.register(i64(w + k), i64(c), n),  # type: ignore[misc]
                lambda j, value, w=w, c=c: put_register(  # type: ignore[misc]
                    i64(c + j), i64(w), most, value
                ),
            )  # fmt: skip
        return
    line_voxels = LINE_BYTES // numpy_dtype(dtype).itemsize
    if past and most < line_voxels:
        _by_lines(size, most, line_voxels, wide, source, put_register)
        return
    copy_transposed(size[0], size[1], most, wide, source, Matrix(put, put_register))


def _by_lines(
    size: tuple[int, ...], vector: int, line: int, dtype: str, source: Matrix,
    put: Callable[[Any, Any, int, Any], None],
) -> None:  # fmt: skip
    """Transpose whole registers of voxels and channels, and store one line after the other.

    Past the caches a line is written twice if other stores come between its halves.
    """
    kind, parts = f"{dtype}x{vector}", line // vector
    with T.grid(i64(size[1] // vector), i64(size[0] // line)) as (b, a):
        w, c = a * i64(line), b * i64(vector)
        done = T.sblock_alloc_buffer((i64(line),), kind, scope="local")
        for part in range(parts):
            transpose(
                vector, kind,
                lambda k, part=part: source.register(w + i64(part * vector + k), c, vector),  # type: ignore[misc]
                lambda j, value, part=part: T.buffer_store(done, value, [i64(j * parts + part)]),  # type: ignore[misc]
            )  # fmt: skip
        for j, part in itertools.product(range(vector), range(parts)):
            put(c + j, w + part * vector, vector, done[i64(j * parts + part)])


def _activate(frame: Frame, row: Row, line: Region, vector: int) -> None:
    """The elementwise activation of a whole line in one loop: in place, or into the output row."""
    work = frame.work
    first = work.plan.channels_first
    for start, vectors, lanes in chunks(line.size, vector):
        last = (active if first else result)(work, (lanes,))
        with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(lanes)) as v:
            place = i64(start) + o * i64(lanes) + v
            index = line.start + place
            value = last.at(line.buffer[index], v)
            if first:
                T.buffer_store(line.buffer, value, [index])
            else:
                w, c = divide(place, line.shape[1])
                frame.output(value, row.n, (row.od, row.oh, w), c)


def is_long(work: Workload) -> bool:
    """Whether the activation is too much code to stand once for every register of a tile."""
    return not work.mixed_axes and work.activation.name not in _SHORT


def unfinished(work: Workload, extents: tuple[int, ...]) -> Formula:
    """What a register tile does to a sum on its way into a line."""
    if is_long(work):
        return Formula(lambda x: x, work.accumulate_dtype, extents)
    return active(work, extents)


def chunks(count: int, vector: int) -> list[tuple[int, int, int]]:
    """Whole vectors, then what is left: ``(first, number of vectors, lanes)``."""
    whole = count // vector
    pieces = [(0, whole, vector), (whole * vector, 1, count - whole * vector)]
    return [piece for piece in pieces if piece[1] * piece[2]]


def active(work: Workload, extents: tuple[int, ...]) -> Formula:
    """From the sum to what a line holds: the elementwise activation."""

    def function(x: Any) -> Any:
        return x if work.mixed_axes else elementwise(work.activation, x)

    return Formula(function, work.accumulate_dtype, extents)


def result(work: Workload, extents: tuple[int, ...]) -> Formula:
    """From the sum to the stored element: the elementwise activation, then the output dtype."""

    def function(x: Any) -> Any:
        # A mixing activation is applied elsewhere.
        active = x if work.mixed_axes else elementwise(work.activation, x)
        return narrow(active, work.output_dtype)

    return Formula(function, work.accumulate_dtype, extents)


def rounded(work: Workload, extents: tuple[int, ...]) -> Formula:
    """From what `active` gives to the stored element."""
    return Formula(lambda x: narrow(x, work.output_dtype), work.accumulate_dtype, extents)


def whole(work: Workload) -> Any:
    """The function ``finish(output, batch)``: a mixing activation over any axes, in place."""

    def body() -> None:
        batch = Var("batch", "int64")
        y = buffer("output", (batch, *work.output_shape[1:]), storage(work.output_dtype))
        T.arg("batch", batch)
        sizes: list[Any] = [batch, *map(i64, work.output_shape[1:])]
        mixed = list(work.mixed_axes)
        kept = [axis for axis in range(5) if axis not in mixed]

        def vector(outer: list[Any]) -> None:
            fixed = dict(zip(kept, outer, strict=True))

            def place(inner: list[Any]) -> list[Any]:
                where = {**fixed, **dict(zip(mixed, inner, strict=True))}
                return [where[axis] for axis in range(5)]

            mix(
                work,
                [sizes[axis] for axis in mixed],
                lambda j: widen(y[tuple(place(j))], work.output_dtype, work.accumulate_dtype),
                lambda value, j: T.buffer_store(y, value, place(j)),
            )

        # A loop of one iteration where every axis is mixed.
        _each([sizes[axis] for axis in kept] or [i64(1)], lambda o: vector(o[: len(kept)]))

    return prim_func("finish", body)


Load = Callable[[list[Any]], Any]
Store = Callable[[Any, list[Any]], None]


def mix(work: Workload, extents: list[Any], load: Load, store: Store) -> None:
    """One vector of a mixing activation.

    ``load`` and ``store`` take the indices along the mixed axes.
    """
    sizes = [i64(size) if isinstance(size, int) else size for size in extents]
    _MIXERS[work.activation.name](_Vector(work, sizes, load, store))


@dataclass(frozen=True)
class _Vector:
    """The elements over which an activation mixes."""

    work: Workload
    sizes: list[Any]
    load: Load
    store: Store

    @property
    def dtype(self) -> str:
        return self.work.accumulate_dtype

    def const(self, value: float) -> Any:
        return tirx.const(value, self.dtype)

    def cell(self, start: float) -> _Cell:
        cell = _Cell(T.sblock_alloc_buffer((i64(1),), self.dtype, scope="local"))
        cell.set(self.const(start))
        return cell

    def formula(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        made = Formula(function, self.dtype, (1,))
        return lambda x: made.at(x, i64(0))

    def each(self, body: Callable[[list[Any]], None]) -> None:
        _each(self.sizes, body)

    def put(self, function: Callable[[Any], Any]) -> Callable[[Any, list[Any]], None]:
        """A store of ``function(x)``, in the output dtype."""
        last = self.formula(lambda x: narrow(function(x), self.work.output_dtype))
        return lambda x, j: self.store(last(x), j)


@dataclass(frozen=True)
class _Cell:
    """A scalar variable."""

    buffer: Any

    @property
    def value(self) -> Any:
        return self.buffer[i64(0)]

    def set(self, value: Any) -> None:
        T.buffer_store(self.buffer, value, [i64(0)])


def _each(sizes: list[Any], body: Callable[[list[Any]], None]) -> None:
    with T.grid(*sizes) as indices:
        body(list(indices) if len(sizes) > 1 else [indices])


def _peak_and_total(v: _Vector) -> tuple[_Cell, _Cell]:
    """The largest element, and the sum of the exponentials of the differences to it."""
    peak, total = v.cell(float("-inf")), v.cell(0.0)

    def larger(j: list[Any]) -> None:
        value = v.load(j)
        # NaN must win: the sum of the exponentials is NaN then, as in Keras.
        kept = tirx.Select(value > peak.value, value, peak.value)
        peak.set(tirx.Select(tirx.isnan(value), value, kept))

    v.each(larger)
    power = v.formula(exp)
    v.each(lambda j: total.set(total.value + power(v.load(j) - peak.value)))
    return peak, total


def _softmax(v: _Vector) -> None:
    peak, total = _peak_and_total(v)
    put = v.put(lambda x: exp(x) / total.value)
    v.each(lambda j: put(v.load(j) - peak.value, j))


def _log_softmax(v: _Vector) -> None:
    peak, total = _peak_and_total(v)
    logarithm = v.formula(log)
    total.set(logarithm(total.value))
    put = v.put(lambda x: x - total.value)
    v.each(lambda j: put(v.load(j) - peak.value, j))


def _sparsemax(v: _Vector) -> None:
    """Without sorting: an entry's rank and the sum of the entries up to it are counted, in O(n^2).

    Like every Keras backend it sums the cumulative sums over the support.
    """
    count, sums, rank, upto = (v.cell(0.0) for _ in range(4))
    one, zero = v.const(1.0), v.const(0.0)

    def entry(j: list[Any]) -> None:
        rank.set(zero)
        upto.set(zero)

        def compare(k: list[Any]) -> None:
            x, y = v.load(k), v.load(j)
            before = tirx.any(x > y, tirx.all(x == y, k[0] <= j[0]))
            rank.set(rank.value + tirx.Select(before, one, zero))
            upto.set(upto.value + tirx.Select(before, x, zero))

        v.each(compare)
        inside = v.load(j) - (upto.value - one) / rank.value > zero
        count.set(count.value + tirx.Select(inside, one, zero))
        sums.set(sums.value + tirx.Select(inside, upto.value, zero))

    v.each(entry)
    put = v.put(lambda x: tirx.Select(x < zero, zero, x))
    v.each(lambda j: put(v.load(j) - (sums.value - one) / count.value, j))


def _glu(v: _Vector) -> None:
    half = tirx.floordiv(v.sizes[0], i64(2))
    gate = v.formula(sigmoid)
    put = v.put(lambda x: x)
    _each([half], lambda j: put(v.load(j) * gate(v.load([j[0] + half])), j))


_MIXERS: dict[str, Callable[[_Vector], None]] = {
    "glu": _glu,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
    "sparsemax": _sparsemax,
}
