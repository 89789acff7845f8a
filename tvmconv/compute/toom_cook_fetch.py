"""Inputs of the Toom-Cook form that are asked for while a block is multiplied.

A block copies its input from rows that no prefetcher follows in time: some planes, a few rows of
each, a part of each row. Where the input is larger than the core's own cache that wait is a tenth
of the time. So each register tile of the block before it asks for some lines of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import LINE_BYTES, divide, i64
from tvmconv.compute.points import Combination
from tvmconv.compute.toom_cook_block import held
from tvmconv.compute.toom_cook_rows import Rows
from tvmconv.policies import numpy_dtype

__all__ = ["Fetch", "Fetches"]


@dataclass(frozen=True)
class Fetches(Rows):
    """Asks for the input of the next block."""

    def fetch(
        self, one: Combination, members: list[Any], number: int, block: Any, parts: int
    ) -> Fetch | None:
        """What the products of block ``block`` of group ``number`` ask for; None: nothing.

        ``parts``: register tiles of a row of tiles.
        """
        form, plan = self.form, self.form.work.plan
        if not form.tiling.fetch or plan.channels_first:
            return None
        classes = [
            axis.classes.index(group) for axis, group in zip(form.axes, one.classes, strict=True)
        ]
        rows = form.tiling.block[0] * form.tiling.block[1] * parts
        blocks = [1 if group.dots else group.blocks for group in form.passes]
        before = self._before(classes, members, rows * sum(blocks))
        before = before + (i64(sum(blocks[:number])) + block) * i64(one.points * rows)
        planes, of_plane, voxels, _ = form.inputs_shape
        size = numpy_dtype(form.work.input_dtype).itemsize
        lines = -(-voxels * plan.in_channels * size // LINE_BYTES)
        # So many register tiles share a row that each row has its turn.
        times = max(1, self._tiles((), rows * sum(blocks)) // (planes * of_plane))
        now, _, end = self.frame.call
        n, index = divide(now + i64(1), self.frame.tiles_per_sample)
        exists = tirx.Select(now + i64(1) < end, i64(planes * of_plane), i64(0))
        found = held([n, *self.first(index), exists])
        first = (found[1], found[2], found[3])
        return Fetch(self, found[0], first, found[4], before, times, -(-lines // times))

    def _tiles(self, classes: Sequence[int], each: int) -> int:
        """Register tiles of the phases of these classes of the first axes, ``each`` a point."""
        if len(classes) == 3:
            return self.form.combination(classes).points * each
        groups = self.form.axes[len(classes)].classes
        return sum(
            len(group.places) * self._tiles((*classes, i), each) for i, group in enumerate(groups)
        )

    def _before(self, classes: Sequence[int], members: list[Any], each: int) -> Any:
        """Register tiles of a block before those of a phase."""
        found = i64(0)
        for k, axis in enumerate(self.form.axes):
            some = tuple(classes[:k])
            skipped = sum(
                len(axis.classes[i].places) * self._tiles((*some, i), each)
                for i in range(classes[k])
            )
            step = self._tiles((*some, classes[k]), each)
            found = found + i64(skipped) + members[k] * i64(step)
        return found

    def bring(self, fetch: Fetch, row: Any, part: Any) -> None:
        """Bring some lines of a row of a block's input into the second-level cache.

        They follow each other in memory. Where the input has no such row, its nearest.
        """
        form = self.form
        rows = (*divide(row, form.inputs_shape[1]), i64(0))
        place = [
            tirx.max(
                tirx.min(tile * i64(axis.outputs) + i64(axis.lowest) + p, i64(axis.axis.size - 1)),
                i64(0),
            )
            for axis, tile, p in zip(form.axes, fetch.first, rows, strict=True)
        ]
        line = LINE_BYTES // numpy_dtype(form.work.input_dtype).itemsize
        for number in range(fetch.lines):
            channel = (part * i64(fetch.lines) + i64(number)) * i64(line)
            self.prefetch(
                self.frame.input(fetch.n, place[0], place[1], place[2], channel), near=False
            )

    def next_row(self, first: tuple[Any, ...], plane: Any, row: Any, least: Any) -> tuple[Any, Any]:
        """The depth and height of the row of input that a block copies after this one.

        It copies those from ``least`` on.
        """
        rows = self.form.inputs_shape[1]
        after_plane, after_row = divide(plane * i64(rows) + row + i64(1), rows)
        after = after_plane, tirx.max(after_row, least)
        places = [
            begin * i64(axis.outputs) + p + i64(axis.lowest)
            for begin, p, axis in zip(first[:2], after, self.form.axes[:2], strict=True)
        ]
        nearest = [
            tirx.max(tirx.min(place, i64(axis.axis.size - 1)), i64(0))
            for place, axis in zip(places, self.form.axes[:2], strict=True)
        ]
        depth, height = held(nearest)
        return depth, height


@dataclass(frozen=True)
class Fetch:
    """The lines of a block's input that the products of the one before ask for.

    Attributes
    ----------
    first : tuple of tvm.tirx.Expr
        The block's first tile.
    rows : tvm.tirx.Expr
        Rows of its input; 0 where there is no such block in a call.
    before : tvm.tirx.Expr
        Number of the first register tile of these products.
    times, lines : int
        Register tiles that share a row, and the lines that each of them asks for.
    """

    fetches: Fetches
    n: Any
    first: tuple[Any, Any, Any]
    rows: Any
    before: Any
    times: int
    lines: int

    def after(self, number: Any) -> None:
        """Ask for the part of register tile ``number`` of these products."""
        row, part = divide(self.before + number, self.times)
        with T.If(row < self.rows), T.Then():
            self.fetches.bring(self, row, part)
