"""The copy of a task tile's input rows in scratch.

Widened, channels last, zeros where there is no input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks
from tvmconv.compute.element import widen
from tvmconv.compute.frame import Frame, Region, divide, i64
from tvmconv.compute.shuffle import Matrix, copy_transposed
from tvmconv.compute.shuffle import lanes as lanes_at

if TYPE_CHECKING:
    from tvmconv.compute.phase import PhaseForm
    from tvmconv.compute.workload import Workload

__all__ = ["copy", "runs"]


def copy(form: PhaseForm, frame: Frame, target: Region, n: Any, start: tuple[Any, Any]) -> None:
    """Emit the copy of the rows that a tile with ``start`` reads, to planes of rows."""
    if not form.work.plan.channels_first:
        _copy(form, frame, target, n, start)
    elif form.tiling.stationary:
        _transpose_all(form, frame, target, n)
    else:
        _transpose(form, frame, target, n, start)


def runs(work: Workload, vector: int) -> list[tuple[int, int]]:
    """The channels of a voxel that are copied together: the first of them, and how many.

    Narrow ones by whole registers, the last one beginning with channels that are copied already:
    element by element to widen them takes several times as long.
    """
    channels = work.plan.in_channels
    rest = channels % vector
    if work.input_dtype == work.accumulate_dtype or rest == 0 or channels < vector:
        return [(0, channels)]
    return [(0, channels - rest), (channels - vector, vector)]


def _copy(form: PhaseForm, frame: Frame, target: Region, n: Any, start: tuple[Any, Any]) -> None:
    work = form.folded
    depth, height, width = work.plan.axes
    with T.grid(*map(i64, form.rows_shape[:3])) as loops:
        for number, (first, count) in enumerate(runs(work, form.tiling.vector)):
            with T.serial(i64(0), i64(count)) as c, T.sblock(f"{blocks.PACK}_{number}"):
                plane, row, voxel, lane = T.axis.remap("SSSS", [*loops, c])
                channel = lane if first == 0 else i64(first) + lane
                d, h = form.tiles.source(start, plane, row)
                w = voxel - i64(form.border[0])
                zero = tirx.const(0, work.accumulate_dtype)
                stored = frame.input(n, d, h, w, channel)
                inside = tirx.all(
                    d >= i64(0), d < i64(depth.size), h >= i64(0), h < i64(height.size),
                    w >= i64(0), w < i64(width.size),
                )  # fmt: skip
                value = widen(stored, work.input_dtype, work.accumulate_dtype)
                target.store(tirx.if_then_else(inside, value, zero), plane, row, voxel, channel)


def _transpose(
    form: PhaseForm, frame: Frame, target: Region, n: Any, start: tuple[Any, Any]
) -> None:
    """The same from channels first: a row is a matrix, transposed in registers."""
    depth, height, width = form.work.plan.axes
    planes, rows, _, _ = form.rows_shape
    left = form.border[0]
    with T.grid(i64(planes), i64(rows)) as (plane, row):
        d, h = form.tiles.source(start, plane, row)
        # Rows that do not exist are never read.
        inside = tirx.all(d >= i64(0), d < i64(depth.size), h >= i64(0), h < i64(height.size))
        with T.If(inside):
            with T.Then():
                _clear(form, target, plane, row)
                _matrix(
                    form, frame, target, width.size, (n, d, h),
                    lambda v: (plane, row, i64(left) + v),
                )  # fmt: skip


def _transpose_all(form: PhaseForm, frame: Frame, target: Region, n: Any) -> None:
    """The whole input from channels first: all of its voxels are one matrix.

    Rows of a few voxels would leave most of a block of registers empty.
    """
    depth, height, width = form.work.plan.axes
    left, right = form.border
    rows = depth.size * height.size
    if left + right:
        with T.serial(i64(0), i64(rows)) as row:
            _clear(form, target, i64(0), row)

    def place(v: Any) -> tuple[Any, Any, Any]:
        # Planes, and without a border rows, lie one after the other.
        if not left + right:
            return i64(0), i64(0), v
        row, w = divide(v, width.size)
        return i64(0), row, i64(left) + w

    # In the input, too: a voxel's number is an index along the width.
    _matrix(form, frame, target, rows * width.size, (n, i64(0), i64(0)), place)


def _clear(form: PhaseForm, target: Region, plane: Any, row: Any) -> None:
    """The borders of a row."""
    _, _, voxels, channels = form.rows_shape
    left, right = form.border
    zero = tirx.const(0, form.work.accumulate_dtype)
    for first, count in ((0, left), (voxels - right, right)):
        with T.grid(i64(count), i64(channels)) as (v, c):
            target.store(zero, plane, row, i64(first) + v, c)


def _matrix(
    form: PhaseForm, frame: Frame, target: Region, voxels: int, origin: tuple[Any, Any, Any],
    place: Any,
) -> None:  # fmt: skip
    """Transpose ``voxels`` voxels from ``origin`` (sample, plane, row) on, to their ``place``."""
    work = form.work
    wide = work.accumulate_dtype
    source = Matrix(
        lambda c, v: widen(frame.input(*origin, v, c), work.input_dtype, wide),
        lambda c, v, size: frame.input_register(*origin, v, c, size),
    )
    packed = Matrix(
        lambda v, c, value: target.store(value, *place(v), c),
        lambda v, c, size, value: T.buffer_store(
            frame.scratch, value, [lanes_at(target.at(*place(v), c), size)]
        ),
    )
    vector = 1 if work.input_dtype == "bfloat16" else form.tiling.vector
    copy_transposed(work.plan.in_channels, voxels, vector, wide, source, packed)
