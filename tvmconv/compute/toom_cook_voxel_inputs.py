"""Inputs of the Toom-Cook form for few filters: how they are copied, and asked for before that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.element import widen
from tvmconv.compute.frame import LINE_BYTES, divide, i64
from tvmconv.compute.row_writer import RowWriter
from tvmconv.compute.shuffle import Matrix, copy_transposed, lanes
from tvmconv.compute.toom_cook_block import held
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm

__all__ = ["Chunk", "VoxelInputs"]


@dataclass(frozen=True)
class Chunk:
    """Input channels that are taken at once: the first, their number, how many at most."""

    first: Any
    count: Any
    most: int


@dataclass(frozen=True)
class VoxelInputs(RowWriter):
    """Emits the way of a block's inputs to scratch."""

    form: ToomCookVoxelForm

    def _input_row(self, plane: Any, row: Any) -> Any:
        """Where an input row lies."""
        return (plane * i64(self.form.inputs(1)) + row) * i64(self.form.row_size)

    def _rows(self, first: tuple[Any, Any], present: Any, absent: Any) -> None:
        """``present`` for each input row of a block that exists, ``absent`` for the others."""
        form = self.form
        with T.grid(i64(form.inputs(0)), i64(form.inputs(1))) as (plane, row):
            d, h = (
                begin * i64(axis.outputs) + number + i64(axis.lowest)
                for begin, axis, number in zip(first, form.axes[:2], (plane, row), strict=True)
            )
            depth, height = form.work.plan.axes[:2]
            inside = tirx.all(d >= i64(0), d < i64(depth.size), h >= i64(0), h < i64(height.size))
            at = self._input_row(plane, row)
            with T.If(inside):
                with T.Then():
                    present(at, d, h)
                if absent is not None:
                    with T.Else():
                        absent(at)

    def _stretch(self, place: int) -> tuple[int, int]:
        """The tiles of a row whose input ``place`` exists: the first, and behind the last."""
        axis = self.form.axes[2]
        first = max(0, -((axis.lowest + place) // axis.outputs))
        behind = -(-(axis.axis.size - axis.lowest - place) // axis.outputs)
        return min(first, self.form.pitch), max(first, min(behind, self.form.pitch))

    def _clear(self, first: tuple[Any, Any]) -> None:
        """Zeros where there is no input: rows, and the ends of rows."""
        form, zero = self.form, tirx.const(0, self._dtype)
        outputs, pitch, scratch = form.axes[2].outputs, form.pitch, self.frame.scratch

        def ends(at: Any, d: Any, h: Any) -> None:
            del d, h
            with T.serial(i64(0), i64(form.channels)) as c:
                for place in range(outputs):
                    begin, behind = self._stretch(place)
                    for start, end in ((0, begin), (behind, pitch)):
                        with T.serial(i64(0), i64(end - start)) as t:
                            index = (
                                at + (c * i64(outputs) + i64(place)) * i64(pitch) + i64(start) + t
                            )
                            T.buffer_store(scratch, zero, [index])

        def whole(at: Any) -> None:
            with T.serial(i64(0), i64(form.channels * outputs * pitch)) as i:
                T.buffer_store(scratch, zero, [at + i])

        self._rows(first, ends, whole)

    def _copy(self, n: Any, first: tuple[Any, Any], begin: Any, channels: int) -> None:
        """Some channels of the input rows of a block."""
        form, work = self.form, self.form.work
        axis = form.axes[2]

        def row(at: Any, d: Any, h: Any) -> None:
            for place in range(axis.outputs):
                start, behind = self._stretch(place)
                lowest = axis.lowest + place + start * axis.outputs

                def voxel(t: Any, lowest: int = lowest) -> Any:
                    return i64(lowest) + t * i64(axis.outputs)

                def element(t: Any, c: Any, voxel: Any = voxel) -> Any:
                    stored = self.frame.input(n, d, h, voxel(t), begin + c)
                    return widen(stored, work.input_dtype, self._dtype)

                def to(c: Any, t: Any, place: int = place, start: int = start) -> Any:
                    number = c * i64(axis.outputs) + i64(place)
                    return at + number * i64(form.pitch) + i64(start) + t

                if work.plan.channels_first:
                    with T.grid(i64(channels), i64(behind - start)) as (c, t):
                        T.buffer_store(self.frame.scratch, element(t, c), [to(c, t)])
                    continue
                source = Matrix(
                    element,
                    lambda t, c, size, voxel=voxel: self.frame.input_register(
                        n, d, h, voxel(t), begin + c, size
                    ),
                    parts=work.input_dtype == self._dtype,
                )
                target = Matrix(
                    lambda c, t, value, to=to: T.buffer_store(
                        self.frame.scratch, value, [to(c, t)]
                    ),
                    lambda c, t, size, value, to=to: T.buffer_store(
                        self.frame.scratch, value, [lanes(to(c, t), size)]
                    ),
                )
                copy_transposed(
                    behind - start, channels, form.tiling.vector, self._dtype, source, target,
                    along=True,
                )  # fmt: skip

        self._rows(first, row, None)

    def _ask(
        self, kinds: Sequence[int], numbers: Sequence[Any], width: int, tile: tuple[Any, Any],
        member: Any, chunk: Chunk,
    ) -> None:  # fmt: skip
        """Bring a share of the inputs that are copied next into the second-level cache.

        Of the channels that follow, or the first ones of the next block. The products of a chunk
        share its lines evenly: they come from far, in pieces that no prefetcher follows.
        """
        form, plan = self.form, self.form.work.plan
        number, total = tile[0] * i64(form.runs) + tile[1], form.tiling.block[0] * form.runs
        for axis, (which, at) in enumerate(zip(kinds, numbers, strict=True)):
            counts = [len(form.jobs(axis, group)) for group in form.axes[axis].classes]
            number = number * i64(sum(counts)) + i64(sum(counts[:which])) + at
            total *= sum(counts)
        places = [len(group.places) for group in form.axes[2].classes]
        number = number * i64(sum(places)) + i64(sum(places[:width])) + member
        total *= sum(places)
        rows = form.inputs(0) * form.inputs(1)
        voxels = plan.axes[2].size
        item = numpy_dtype(form.work.input_dtype).itemsize
        lines = -(-chunk.most * item // LINE_BYTES)
        # So many products share a row.
        parts = max(1, total // rows)
        each = -(-voxels // parts)
        many = -(-rows // max(1, total))
        behind = chunk.first + i64(chunk.most) >= i64(plan.in_channels)
        now, _, end = self.frame.call
        now = tirx.Select(behind, now + i64(1), now)
        n, index = divide(now, self.frame.tiles_per_sample)
        block = divide(index, form.axes[1].blocks)
        start = tirx.Select(behind, i64(0), chunk.first + i64(chunk.most))
        with T.serial(i64(0), i64(many)) as more:
            row, part = divide(number * i64(many) + more, parts)
            place = []
            for one, begin, at in zip(
                form.axes[:2], block, divide(row, form.inputs(1)), strict=True
            ):
                place_of = begin * i64(one.block * one.outputs) + at + i64(one.lowest)
                place.append(tirx.max(tirx.min(place_of, i64(one.axis.size - 1)), i64(0)))
            exists = tirx.all(now < end, row < i64(rows))
            count = tirx.Select(exists, tirx.min(i64(each), i64(voxels) - part * i64(each)), i64(0))
            n, d, h, begin, count = held([n, *place, part * i64(each), count])
            with T.serial(i64(0), count) as step:
                for line in range(lines + 1):
                    # The last one, too: a caller's voxels need not begin with a line.
                    c = start + i64(min(line * LINE_BYTES // item, chunk.most - 1))
                    c = tirx.min(c, i64(plan.in_channels - 1))
                    element = self.frame.input(n, d, h, begin + step, c)
                    address = tirx.address_of(element)
                    T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))
