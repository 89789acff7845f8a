"""What happens to an output row that cannot leave the register tile finished.

Channels-first rows, and rows over which an activation mixes values (softmax, log_softmax, sparsemax, glu along the channels or
the width), are collected in scratch as ``[voxel][channel]`` and written here. An activation that mixes over more than a row runs once over the
whole output after the last tile (`whole`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.ir import Var
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks
from tvmconv.compute.activation import elementwise, sigmoid
from tvmconv.compute.element import narrow, storage, widen
from tvmconv.compute.elementary import exp, log
from tvmconv.compute.frame import Frame, Region, Row, buffer, i64, prim_func
from tvmconv.compute.workload import Workload

__all__ = ["emit", "needs_line", "whole"]


def needs_line(work: Workload) -> bool:
    """Whether output rows pass through scratch."""
    return work.plan.channels_first or work.row_axis is not None


def emit(frame: Frame, row: Row, line: Region) -> None:
    """Write the finished row."""
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
            frame.output(narrow(value, work.output_dtype), row, w, c)

        with T.serial(i64(0), i64(outer)) as i:
            _mix(
                work,
                [inner],
                lambda j: load(i, j[0]),
                lambda value, j: store(value, i, j[0]),
            )
        return
    with T.grid(i64(channels), i64(voxels)) as (c, w):
        with T.sblock(blocks.FINISH):
            vc, vw = T.axis.spatial(i64(channels), c), T.axis.spatial(i64(voxels), w)
            value = line.load(vw, vc)
            if not work.finishes_whole:
                value = elementwise(work.activation, value)
            frame.output(narrow(value, work.output_dtype), row, vw, vc)


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

            _mix(
                work,
                [sizes[axis] for axis in mixed],
                lambda j: widen(y[tuple(place(j))], work.output_dtype, work.accumulate_dtype),
                lambda value, j: T.buffer_store(y, narrow(value, work.output_dtype), place(j)),
            )

        # A loop of one iteration where every axis is mixed.
        _each([sizes[axis] for axis in kept] or [i64(1)], lambda o: vector(o[: len(kept)]))

    return prim_func("finish", body)


Load = Callable[[list[Any]], Any]
Store = Callable[[Any, list[Any]], None]


def _mix(work: Workload, extents: list[Any], load: Load, store: Store) -> None:
    """One vector of a mixing activation: ``load`` and ``store`` take the indices along the mixed axes."""
    sizes = [i64(size) if isinstance(size, int) else size for size in extents]
    _MIXERS[work.activation.name](work.accumulate_dtype, sizes, load, store)


def _each(sizes: list[Any], body: Callable[[list[Any]], None]) -> None:
    with T.grid(*sizes) as indices:
        body(list(indices) if len(sizes) > 1 else [indices])


def _scalar(dtype: str, start: Any) -> Any:
    cell = T.sblock_alloc_buffer((i64(1),), dtype, scope="local")
    T.buffer_store(cell, start, [i64(0)])
    return cell


def _assign(cell: Any, value: Any) -> None:
    T.buffer_store(cell, value, [i64(0)])


def _peak(dtype: str, sizes: list[Any], load: Load) -> Any:
    peak = _scalar(dtype, tirx.const(float("-inf"), dtype))

    def step(j: list[Any]) -> None:
        value = load(j)
        # NaN must win: the sum of the exponentials is NaN then, as in Keras.
        larger = tirx.Select(value > peak[i64(0)], value, peak[i64(0)])
        _assign(peak, tirx.Select(value == value, larger, value))

    _each(sizes, step)
    return peak


def _exponentials(dtype: str, sizes: list[Any], load: Load, peak: Any) -> Any:
    total = _scalar(dtype, tirx.const(0, dtype))
    _each(sizes, lambda j: _assign(total, total[i64(0)] + exp(load(j) - peak[i64(0)])))
    return total


def _softmax(dtype: str, sizes: list[Any], load: Load, store: Store) -> None:
    peak = _peak(dtype, sizes, load)
    total = _exponentials(dtype, sizes, load, peak)
    _each(sizes, lambda j: store(exp(load(j) - peak[i64(0)]) / total[i64(0)], j))


def _log_softmax(dtype: str, sizes: list[Any], load: Load, store: Store) -> None:
    peak = _peak(dtype, sizes, load)
    total = _exponentials(dtype, sizes, load, peak)
    _each(sizes, lambda j: store(load(j) - peak[i64(0)] - log(total[i64(0)]), j))


def _sparsemax(dtype: str, sizes: list[Any], load: Load, store: Store) -> None:
    """Without sorting: an entry's rank and the sum of the entries up to it are counted, in O(n^2).

    Like every Keras backend it sums the cumulative sums over the support.
    """
    one, zero = tirx.const(1, dtype), tirx.const(0, dtype)
    count, sums = _scalar(dtype, zero), _scalar(dtype, zero)

    def entry(j: list[Any]) -> None:
        rank, upto = _scalar(dtype, zero), _scalar(dtype, zero)

        def compare(k: list[Any]) -> None:
            before = tirx.any(load(k) > load(j), tirx.all(load(k) == load(j), k[0] <= j[0]))
            _assign(rank, rank[i64(0)] + tirx.Select(before, one, zero))
            _assign(upto, upto[i64(0)] + tirx.Select(before, load(k), zero))

        _each(sizes, compare)
        inside = load(j) - (upto[i64(0)] - one) / rank[i64(0)] > zero
        _assign(count, count[i64(0)] + tirx.Select(inside, one, zero))
        _assign(sums, sums[i64(0)] + tirx.Select(inside, upto[i64(0)], zero))

    _each(sizes, entry)

    def last(j: list[Any]) -> None:
        value = load(j) - (sums[i64(0)] - one) / count[i64(0)]
        store(tirx.Select(value < zero, zero, value), j)

    _each(sizes, last)


def _glu(dtype: str, sizes: list[Any], load: Load, store: Store) -> None:
    half = tirx.floordiv(sizes[0], i64(2))
    _each([half], lambda j: store(load(j) * sigmoid(load([j[0] + half])), j))


_MIXERS: dict[str, Callable[[str, list[Any], Load, Store], None]] = {
    "glu": _glu,
    "log_softmax": _log_softmax,
    "softmax": _softmax,
    "sparsemax": _sparsemax,
}
