"""How the forms for few filters write sums whose lanes are voxels: phases interleaved, finished."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.frame import Frame, Region, divide, i64
from tvmconv.compute.shuffle import interleave, lanes

if TYPE_CHECKING:
    from tvmconv.compute.lane_sums import LaneSums
    from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm

__all__ = ["RowWriter"]


@dataclass(frozen=True)
class RowWriter:
    """Emits the way from sums in scratch to output rows."""

    form: LaneSums | ToomCookVoxelForm
    frame: Frame

    @property
    def _line(self) -> Region:
        """Sums in scratch; the last two indices are the sum and the voxel."""
        raise NotImplementedError

    @property
    def _row(self) -> Region:
        """Room for a piece of an output row."""
        raise NotImplementedError

    @property
    def _dtype(self) -> str:
        return self.form.work.accumulate_dtype

    @property
    def _kind(self) -> str:
        size = self.form.tiling.vector
        return f"{self._dtype}x{size}" if size > 1 else self._dtype

    def _finish(
        self, n: Any, place: tuple[Any, Any], line: tuple[Any, ...], first: Any, vectors: int
    ) -> None:
        """From a line of sums to the output rows of the position ``place`` (plane, row).

        One for each phase of depth and height: ``vectors`` registers from voxel ``first`` on.
        ``line`` are the indices of the region before those of the sum and the voxel.
        """
        plan = self.form.work.plan
        depth, height, width = plan.axes
        pairs = itertools.product(range(depth.stride), range(height.stride))
        for index, (a, b) in enumerate(pairs):
            od = place[0] * i64(depth.stride) + i64(a - depth.lo)
            oh = place[1] * i64(height.stride) + i64(b - height.lo)
            inside = tirx.all(od >= i64(0), od < i64(depth.out), oh >= i64(0), oh < i64(height.out))
            with T.If(inside):
                with T.Then():
                    start = index * width.stride * plan.filters
                    if plan.channels_first:
                        for f in range(plan.filters):
                            chosen = [start + j * plan.filters + f for j in range(width.stride)]
                            self._write((n, od, oh, f), line, first, chosen, vectors)
                    else:
                        chosen = list(range(start, start + width.stride * plan.filters))
                        self._write((n, od, oh, None), line, first, chosen, vectors)

    def _write(
        self, row: tuple[Any, Any, Any, int | None], line: tuple[Any, ...], first: Any,
        chosen: list[int], vectors: int, *, lane: Any = None,
    ) -> None:  # fmt: skip
        """Interleave sums of one output row, crop it, apply the activation, write it.

        Voxel 0 is in lane ``lane`` of the line.
        """
        begin = first if lane is None else lane + first
        size, factor = self.form.tiling.vector, len(chosen)
        with T.serial(i64(0), i64(vectors)) as m:
            loaded = [
                self.frame.scratch[lanes(self._line.at(*line, i64(i), begin + m * i64(size)), size)]
                for i in chosen
            ]
            for j, value in enumerate(interleave(size, self._kind, loaded)):
                place = self._row.at(m * i64(size * factor) + i64(j * size))
                T.buffer_store(self.frame.scratch, value, [lanes(place, size)])
        plan = self.form.work.plan
        total = plan.axes[2].out * (1 if plan.channels_first else plan.filters)
        begin = first * i64(factor)
        whole = tirx.min(tirx.floordiv(i64(total) - begin, i64(size)), i64(vectors * factor))
        with T.serial(i64(0), whole) as o:
            self._store(row, begin, o * i64(size), size)
        rest = total % size
        if rest:
            with T.If(begin + i64(vectors * factor * size) > i64(total)), T.Then():
                self._store(row, begin, i64(total - rest) - begin, rest)

    def _store(
        self, row: tuple[Any, Any, Any, int | None], begin: Any, at: Any, count: int
    ) -> None:
        """Finish ``count`` outputs of a row, from ``at`` of the interleaved ones on."""
        n, od, oh, channel = row
        last = finish.result(self.form.work, (count,))
        with T.vectorized(i64(0), i64(count)) as v:
            value = last.at(self._row.load(at + v), v)
            place = begin + at + v
            if channel is None:
                w, f = divide(place, self.form.work.plan.filters)
            else:
                w, f = place, i64(channel)
            self.frame.output(value, n, (od, oh, w), f)
