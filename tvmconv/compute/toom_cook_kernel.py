"""The kernel of the Toom-Cook form: copy, transform, multiply, transform back, store."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks, finish
from tvmconv.compute.element import widen
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Region, i64
from tvmconv.compute.lanes import Group
from tvmconv.compute.points import Combination
from tvmconv.compute.schemes import signed_sum
from tvmconv.compute.shuffle import Matrix, copy_transposed
from tvmconv.compute.shuffle import lanes as lanes_at
from tvmconv.compute.toom_cook import MANY_SUMS
from tvmconv.compute.toom_cook_sums import Sums

__all__ = ["Emitter"]

#: Tiles between the one that is transformed back and the one whose outputs are brought near.
_AHEAD = 2


@dataclass(frozen=True)
class _Result:
    """A sum, and what becomes of it in lane ``v``."""

    sum: Any
    formula: Formula
    v: Any

    def value(self) -> Any:
        """Emit the intermediate stores and return what is stored."""
        return self.formula.at(self.sum, self.v)


class Emitter(Sums):
    """Emits the statements of a kernel."""

    def block(self, n: Any, index: Any) -> None:
        """One task: a block of tiles of sample ``n``."""
        first = self.first(index)
        if self.form.work.plan.channels_first:
            self._copy_transposed(n, first)
        else:
            self._copy(n, first)
        if self.form.tiling.paired:
            self.measure()
        self._phases(n, first, [], [])
        if finish.needs_line(self.form.work):
            self.finish_rows(n, first)

    def _copy(self, n: Any, first: tuple[Any, ...]) -> None:
        """The input of the block: widened, channels last, zeros where there is no input."""
        form, plan = self.form, self.form.work.plan
        target = Region(self.frame.scratch, 0, form.inputs_shape)
        extents = (*form.inputs_shape[:3], plan.in_channels)
        with T.grid(*map(i64, extents)) as indices:
            with T.sblock(blocks.PACK):
                *place, channel = T.axis.remap("SSSS", list(indices))
                inside, where = [], []
                for axis, tile, p in zip(form.axes, first, place, strict=True):
                    position = tile * i64(axis.outputs) + p + i64(axis.lowest)
                    where.append(position)
                    inside += [position >= i64(0), position < i64(axis.axis.size)]
                stored = self.frame.input(n, where[0], where[1], where[2], channel)
                value = widen(stored, form.work.input_dtype, self.dtype)
                zero = tirx.const(0, self.dtype)
                target.store(tirx.if_then_else(tirx.all(*inside), value, zero), *place, channel)

    def _copy_transposed(self, n: Any, first: tuple[Any, ...]) -> None:
        """The same from channels first: a whole row is a matrix, transposed in registers.

        Each block of it asks for the same block of the next row: its channels lie far apart, where
        no prefetcher follows. Into the second-level cache: in the first they often meet in one set.
        """
        form, work, dtype = self.form, self.form.work, self.dtype
        depth, height, width = form.axes
        planes, rows, voxels, _ = form.inputs_shape
        target = Region(self.frame.scratch, 0, form.inputs_shape)
        left, skipped = max(0, -width.lowest), max(0, width.lowest)
        count = max(0, min(width.axis.size - skipped, voxels - left))
        zero = tirx.const(0, dtype)

        def fill(begin: int, end: int) -> None:
            with T.grid(i64(max(0, end - begin)), i64(work.plan.in_channels)) as (v, c):
                target.store(zero, plane, row, i64(begin) + v, c)

        with T.grid(i64(planes), i64(rows)) as (plane, row):
            d = first[0] * i64(depth.outputs) + plane + i64(depth.lowest)
            h = first[1] * i64(height.outputs) + row + i64(height.lowest)
            inside = tirx.all(
                d >= i64(0), d < i64(depth.axis.size), h >= i64(0), h < i64(height.axis.size)
            )
            with T.If(inside):
                with T.Then():
                    fill(0, left)
                    fill(left + count, voxels)
                    after = self.next_row(first, plane, row)

                    def load(c: Any, v: Any, size: int) -> Any:
                        # Where lines do not begin with a row, the row before asked for the first.
                        end = i64(skipped + size - 1) + v
                        self.prefetch(self.frame.input(n, *after, end, c), near=False)
                        return self.frame.input_register(n, d, h, i64(skipped) + v, c, size)

                    source = Matrix(
                        lambda c, v: widen(
                            self.frame.input(n, d, h, i64(skipped) + v, c), work.input_dtype, dtype
                        ),
                        load,
                    )
                    packed = Matrix(
                        lambda v, c, value: target.store(value, plane, row, i64(left) + v, c),
                        lambda v, c, size, value: T.buffer_store(
                            self.frame.scratch,
                            value,
                            [lanes_at(target.at(plane, row, i64(left) + v, c), size)],
                        ),
                    )
                    vector = 1 if work.input_dtype == "bfloat16" else self.vector
                    channels = work.plan.in_channels
                    copy_transposed(channels, count, vector, dtype, source, packed)
                with T.Else():
                    fill(0, voxels)

    def _phases(
        self, n: Any, first: tuple[Any, ...], classes: list[int], members: list[Any]
    ) -> None:
        """All phases, axis by axis: the input is transformed where the shared axes begin."""
        if len(classes) == 3 - self.form.tiling.shared:
            self.transform(first, classes, members)
        if len(classes) == 3:
            self._combination(n, first, classes, members)
            return
        for index, group in enumerate(self.form.axes[len(classes)].classes):
            if len(group.places) == 1:
                self._phases(n, first, [*classes, index], [*members, i64(0)])
                continue
            with T.serial(i64(0), i64(len(group.places))) as member:
                self._phases(n, first, [*classes, index], [*members, member])

    def _combination(
        self, n: Any, first: tuple[Any, ...], classes: list[int], members: list[Any]
    ) -> None:
        """One phase: its products, transformed back and stored, by blocks of channels."""
        one = self.form.combination(classes)
        for number, group in enumerate(self.form.groups):
            if group.dots:
                together = replace(group, valid=group.blocks, blocks=1, lanes=group.blocks)
                self.multiply(n, first, one, members, number, i64(0))
                self._finish(n, first, one, members, together, i64(0))
                continue
            with T.serial(i64(0), i64(group.blocks)) as block:
                self.multiply(n, first, one, members, number, block)
                self._finish(n, first, one, members, group, block)

    def _finish(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        group: Group,
        block: Any,
    ) -> None:
        """Transform the products back, add the bias, and store."""
        work = self.form.work
        line = finish.needs_line(work)
        schemes = [axis.scheme for axis in one.classes]
        sizes = [len(scheme.points) for scheme in schemes]
        counts = [self.count(number, first) for number in range(3)]
        places = sizes[1] * sizes[2]
        looped = places > MANY_SUMS
        plane = self.local(places * (schemes[0].outputs if looped else 1), self.vector)
        row = self.local(sizes[2], self.vector)
        shape = tuple(scheme.outputs for scheme in schemes)
        # A long formula would be repeated for every output of a tile.
        loops = not line and (finish.is_long(work) or work.output_dtype == "bfloat16")
        ready = self.local(math.prod(shape) if loops else 1, self.vector)
        back = self.local(1, self.vector)
        paired = self.form.tiling.paired
        for start, vectors, lanes in finish.chunks(group.valid, self.vector):
            last = (finish.unfinished if line else finish.result)(work, (lanes,))
            with T.grid(*counts, i64(vectors)) as (*tile, chunk):
                with T.vectorized(i64(0), i64(lanes)) as v:
                    lane = i64(start) + chunk * i64(lanes) + v
                    number = i64(group.lane_offset) + block * i64(group.lanes) + lane
                    channel = i64(group.first) + block * i64(group.lanes) + lane

                    if paired:
                        T.buffer_store(back, self.back(tile, number), [i64(0), v])

                    def product(point: Any, tile: Any = tile, lane: Any = lane) -> Any:
                        return self.frame.scratch[self.product(tile, point, group.lanes, lane)]

                    def along_depth(a: int, into: int) -> None:
                        def add(at: Any) -> None:
                            terms = [
                                (product(i64(d * places) + at), sign)
                                for d, sign in enumerate(schemes[0].result[a])
                            ]
                            T.buffer_store(plane, signed_sum(terms), [i64(into) + at, v])

                        if not looped:
                            for number in range(places):
                                add(i64(number))
                            return
                        with T.serial(i64(0), i64(places)) as at:
                            add(at)

                    def finish_plane(
                        a: Any,
                        of: Any,
                        lane: Any = number,
                        channel: Any = channel,
                        last: Any = last,
                    ) -> None:
                        for b in range(shape[1]):
                            for w in range(sizes[2]):
                                terms = [
                                    (plane[of + i64(h * sizes[2] + w), v], sign)
                                    for h, sign in enumerate(schemes[1].result[b])
                                ]
                                T.buffer_store(row, signed_sum(terms), [i64(w), v])
                            for c in range(shape[2]):
                                terms = [
                                    (row[i64(w), v], sign)
                                    for w, sign in enumerate(schemes[2].result[c])
                                ]
                                value = signed_sum(terms)
                                value = value * back[i64(0), v] if paired else value
                                value = value + self.frame.bias[lane]
                                if loops:
                                    flat = Region(None, 0, shape).at(a, i64(b), i64(c))
                                    T.buffer_store(ready, value, [flat, v])
                                else:
                                    self._store(
                                        n, first, one, members, tile, (a, b, c), channel,
                                        _Result(value, last, v),
                                    )  # fmt: skip

                    for a in range(shape[0]):
                        along_depth(a, a * places if looped else 0)
                        if not looped:
                            finish_plane(i64(a), i64(0))
                    if looped:
                        with T.serial(i64(0), i64(shape[0])) as a:
                            finish_plane(a, a * i64(places))
                if not line:
                    begin = i64(group.first) + block * i64(group.lanes)
                    begin = begin + i64(start) + chunk * i64(lanes)
                    self._claim_ahead(n, first, one, members, tile, begin)
                if loops:
                    with T.grid(*map(i64, shape)) as output, T.vectorized(i64(0), i64(lanes)) as v:
                        channel = i64(group.first) + block * i64(group.lanes)
                        channel = channel + i64(start) + chunk * i64(lanes) + v
                        flat = Region(None, 0, shape).at(*output)
                        self._store(
                            n, first, one, members, tile, output, channel,
                            _Result(ready[flat, v], last, v),
                        )  # fmt: skip

    def _claim_ahead(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        tile: Sequence[Any],
        channel: Any,
    ) -> None:
        """Bring the places of the outputs of a tile further on into the first-level cache."""
        last = i64(self.form.tiling.block[2] - 1)
        ahead = (*tile[:2], tirx.min(tile[2] + i64(_AHEAD), last))
        shape = (range(axis.scheme.outputs) for axis in one.classes)
        for output in itertools.product(*shape):
            place = self.nearest(first, one, members, ahead, output)
            where = (n, *place, channel)
            self.prefetch(self.frame.y[where], write=True)

    def _store(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        tile: Sequence[Any],
        output: Sequence[Any],
        channel: Any,
        result: _Result,
    ) -> None:
        """Store an output of a tile if it exists: to its place, or to the rows in scratch."""
        form = self.form
        outs, inside = self.places(first, one, members, tile, output)

        def store() -> None:
            if not finish.needs_line(form.work):
                self.frame.output(result.value(), n, outs, channel)
                return
            self.keep(result.value(), first, one, members, tile, output, channel)

        if not inside:
            store()
            return
        with T.If(tirx.all(*inside)), T.Then():
            store()
