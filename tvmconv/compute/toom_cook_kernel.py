"""The kernel of the Toom-Cook form: copy, transform, multiply, transform back, store."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks, finish
from tvmconv.compute.element import widen
from tvmconv.compute.frame import Region, i64
from tvmconv.compute.input_rows import runs
from tvmconv.compute.shuffle import Matrix, copy_transposed
from tvmconv.compute.shuffle import lanes as lanes_at
from tvmconv.compute.toom_cook_back import Back
from tvmconv.compute.toom_cook_block import Phase, held
from tvmconv.compute.toom_cook_sums import Sums

__all__ = ["Emitter"]


class Emitter(Sums, Back):
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
        form = self.form
        target = Region(self.frame.scratch, 0, form.inputs_shape)
        with T.grid(*map(i64, form.inputs_shape[:3])) as loops:
            for number, (begin, count) in enumerate(runs(form.work, self.vector)):
                with T.serial(i64(0), i64(count)) as c, T.sblock(f"{blocks.PACK}_{number}"):
                    *place, lane = T.axis.remap("SSSS", [*loops, c])
                    channel = lane if begin == 0 else i64(begin) + lane
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
        """The same from channels first: a row is a matrix, transposed in registers.

        Each block of it asks for the same block of the next row: its channels lie far apart, where
        no prefetcher follows. Into the second-level cache: in the first they often meet in one set.
        On Zen 4 the channels of a register are copied to the end of the row before the next ones:
        the lines of all channels would meet there. Rows that the block before had, too, are moved
        (`_move_rows`). Of a part of a row it counts
        where zeros stand for inputs that do not exist: code for each way that parts have them.
        """
        form, work, dtype = self.form, self.form.work, self.dtype
        depth, height, width = form.axes
        planes, rows, voxels, _ = form.inputs_shape
        target = Region(self.frame.scratch, 0, form.inputs_shape)
        parts = self._row_parts()
        begin = i64(width.lowest)
        if width.blocks > 1:
            begin = begin + first[2] * i64(width.outputs)
        zero = tirx.const(0, dtype)
        moved = self._move_rows(first)

        def fill(begin: int, end: int) -> None:
            with T.grid(i64(max(0, end - begin)), i64(work.plan.in_channels)) as (v, c):
                target.store(zero, plane, row, i64(begin) + v, c)

        with T.grid(i64(planes), i64(rows) - moved) as (plane, number):
            row = number + moved
            d = first[0] * i64(depth.outputs) + plane + i64(depth.lowest)
            h = first[1] * i64(height.outputs) + row + i64(height.lowest)
            inside = tirx.all(
                d >= i64(0), d < i64(depth.axis.size), h >= i64(0), h < i64(height.axis.size)
            )
            with T.If(inside):
                with T.Then():
                    after = self.next_row(first, plane, row, moved)

                    def copy(left: int, count: int, skipped: Any) -> None:
                        fill(0, left)
                        fill(left + count, voxels)

                        def load(c: Any, v: Any, size: int) -> Any:
                            # Where lines do not begin with a row, the row before asked for the
                            # first.
                            end = skipped + i64(size - 1) + v
                            self.prefetch(self.frame.input(n, *after, end, c), near=False)
                            return self.frame.input_register(n, d, h, skipped + v, c, size)

                        source = Matrix(
                            lambda c, v: widen(
                                self.frame.input(n, d, h, skipped + v, c), work.input_dtype, dtype
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
                        copy_transposed(
                            channels, count, vector, dtype, source, packed,
                            along=form.tiling.compact,
                        )  # fmt: skip

                    for (left, count), (low, high) in parts.items():
                        if len(parts) == 1:
                            copy(left, count, begin + i64(left))
                            continue
                        here = [first[2] >= i64(low), first[2] <= i64(high)]
                        with T.If(tirx.all(*here)), T.Then():
                            copy(left, count, begin + i64(left))
                with T.Else():
                    fill(0, voxels)

    def _row_parts(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Zeros before the inputs of a block's rows, and how many inputs there are.

        With the first tiles of the first and the last block along the width that have so many.
        """
        width, voxels = self.form.axes[2], self.form.inputs_shape[2]
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for tile in range(0, width.tiles, width.block):
            begin = tile * width.outputs + width.lowest
            left, skipped = min(voxels, max(0, -begin)), max(0, begin)
            count = max(0, min(width.axis.size - skipped, voxels - left))
            low, _ = found.get((left, count), (tile, tile))
            found[left, count] = low, tile
        return found

    def _move_rows(self, first: tuple[Any, ...]) -> Any:
        """Move the last rows of the input of the block before to where this block has them.

        How many: none where that block is another call's, or no neighbour along the height.
        """
        form, vector = self.form, self.vector
        planes, rows, voxels, channels = form.inputs_shape
        step = form.axes[1].outputs * form.axes[1].block
        if not form.moves_rows:
            return i64(0)
        number, begin, _ = self.frame.call
        follows = tirx.all(number > begin, first[1] > i64(0))
        with T.If(follows), T.Then():
            source = Region(self.frame.scratch, 0, (planes, rows, voxels * channels))
            parts = voxels * channels // vector
            with T.grid(i64(planes), i64(rows - step), i64(parts)) as (plane, row, part):
                before, now = (
                    lanes_at(source.at(plane, at, part * i64(vector)), vector)
                    for at in (row + i64(step), row)
                )
                T.buffer_store(self.frame.scratch, self.frame.scratch[before], [now])
        return held([tirx.Select(follows, i64(rows - step), i64(0))])[0]

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
        phase = Phase(n, first, self.form.combination(classes), members)
        if self.form.masked:
            with T.serial(i64(0), i64(len(self.form.blocks))) as block:
                self._products_of(phase, block)
                self.finish_masked(phase, block)
            return
        for number, group in enumerate(self.form.groups):
            with T.serial(i64(0), i64(1 if group.dots else group.blocks)) as block:
                self.multiply(phase, number, block)
                self.finish(phase, number, block)

    def _products_of(self, phase: Phase, block: Any) -> None:
        """The products of a block of lanes, counted through all groups."""
        groups, before = self.form.passes, 0
        for number, group in enumerate(groups):
            count = group.blocks
            # Only the first group has several.
            own = i64(0) if count == 1 else block - i64(before)
            inside = tirx.all(block >= i64(before), block < i64(before + count))
            with T.If(inside) if len(groups) > 1 else nullcontext():
                with T.Then() if len(groups) > 1 else nullcontext():
                    self.multiply(phase, number, own)
            before += count
