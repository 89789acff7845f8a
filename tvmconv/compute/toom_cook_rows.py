"""Outputs of the Toom-Cook form that pass through scratch, and when they leave it.

Rows over which an activation mixes values are finished at the end of a block. Channels-first rows
leave in pieces: the voxels that fill a line, of as many channels as a register has lanes or fewer,
transposed. The lines of several channels often meet in one set of the caches, which holds few.
All at once they would wait for memory with nothing else to do. So the rows of one phase of depth
and height, a *unit*, leave while the next unit is multiplied, a few pieces with each row of tiles.
A block's last unit leaves during the next block, or at the end of the call. The row of tiles before
a piece asks for its lines.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish, streaming
from tvmconv.compute.frame import LINE_BYTES, Region, Row, Taps, divide, i64
from tvmconv.compute.points import Combination, pick
from tvmconv.compute.toom_cook_block import Block, Phase, held
from tvmconv.compute.toom_cook_leaving import Leaving
from tvmconv.policies import numpy_dtype

__all__ = ["Rows", "Unit"]

#: Pieces that leave with a row of tiles at most, on Zen 4; else some leave with each register tile.
_MOST_OF_ROW = 8


@dataclass(frozen=True)
class Rows(Block):
    """Keeps rows in scratch and writes them."""

    @property
    def _rows(self) -> Region:
        form = self.form
        return Region(self.frame.scratch, form.offsets[2], form.rows_shape)

    def keep(
        self, value: Any, phase: Phase, tile: Sequence[Any], output: Sequence[Any], channel: Any
    ) -> None:
        """Store an output of a tile, all but finished, in its row."""
        form = self.form
        outs, _ = self.places(phase, tile, output)
        if form.waits:
            inside = [
                t * i64(axis.outputs) + (i64(j) if isinstance(j, int) else j)
                for t, j, axis in zip(tile[:2], output[:2], form.axes[:2], strict=True)
            ]
            slot = self._slot(self.frame.call[0], self._number(phase.one, phase.members))
            voxel = outs[2] - self._row_begin(phase.first)
            self._rows.store(value, slot, *inside, voxel, channel)
            return
        local = [
            out - begin * i64(axis.span)
            for out, begin, axis in zip(outs, phase.first, form.axes, strict=True)
        ]
        self._rows.store(value, *local, channel)

    def finish_rows(self, n: Any, first: tuple[Any, ...]) -> None:
        """Write what a block's rows hold, or, where they wait for the next block, a call's last."""
        form = self.form
        if form.waits:
            number, _, end = self.frame.call
            with T.If(number == end - i64(1)), T.Then():
                unit = self._unit(number, i64(self._units - 1), tirx.const(True))
                self.write(unit, i64(0), i64(self.pieces))
            return
        counts = [
            tirx.min(i64(axis.span * axis.block), i64(axis.axis.out) - begin * i64(axis.span))
            for axis, begin in zip(form.axes[:2], first[:2], strict=True)
        ]
        with T.grid(*counts) as (d, h):
            od = first[0] * i64(form.axes[0].span) + d
            oh = first[1] * i64(form.axes[1].span) + h
            depth, height = (axis.axis for axis in form.axes[:2])
            taps = Taps.of(depth, od), Taps.of(height, oh)
            row = Row(n, od, oh, *taps, first[:2], i64(0))
            finish.emit(self.frame, row, self._rows.part(d, h), self.vector)

    def leaving(
        self, one: Combination, members: list[Any], number: int, block: Any, of_row: int
    ) -> Leaving | None:
        """What leaves with the products of block ``block`` of group ``number``; None: nothing.

        A row of tiles has ``of_row`` register tiles.
        """
        form = self.form
        if not form.waits:
            return None
        depth, height, width = (
            axis.classes.index(group) for axis, group in zip(form.axes, one.classes, strict=True)
        )
        parts = [1 if group.dots else group.blocks for group in form.groups]
        sizes = [
            form.combination((depth, height, k)).points * len(group.places) * sum(parts)
            for k, group in enumerate(form.axes[2].classes)
        ]
        rows = form.tiling.block[0] * form.tiling.block[1]
        each = -(-self.pieces // (sum(sizes) * rows))
        often = form.tiling.compact and each > _MOST_OF_ROW
        if often:
            rows *= of_row
            each = -(-self.pieces // (sum(sizes) * rows))
        step = members[2] * i64(sum(parts)) + i64(sum(parts[:number])) + block
        step = i64(sum(sizes[:width])) + step * i64(one.points)
        unit = self._number(one, members)
        begins = unit == i64(0)
        before = tirx.Select(begins, i64(self._units - 1), unit - i64(1))
        block_now, call_begins, _ = self.frame.call
        block_before = block_now - tirx.Select(begins, i64(1), i64(0))
        exists = tirx.Not(tirx.all(begins, block_now == call_begins))
        found = self._unit(block_before, before, exists)
        return Leaving(self, found, step * i64(rows), each, sum(sizes) * rows, often)

    @property
    def _units(self) -> int:
        """Phases of depth and height."""
        depth, height, _ = self.form.axes
        return depth.axis.stride * height.axis.stride

    def _number(self, one: Combination, members: list[Any]) -> Any:
        """Number of the unit that is computed: they follow each other in this order."""
        found = i64(0)
        for axis, group, member in zip(self.form.axes[:2], one.classes, members, strict=False):
            before = axis.classes[: axis.classes.index(group)]
            index = i64(sum(len(other.places) for other in before)) + member
            found = found * i64(axis.axis.stride) + index
        return found

    def _slot(self, number: Any, unit: Any) -> Any:
        """Which half of the rows a unit of block ``number`` uses."""
        return tirx.floormod(number * i64(self._units) + unit, i64(2))

    def _row_begin(self, first: Sequence[Any]) -> Any:
        """The first output, along the width, of the block with these first tiles."""
        width = self.form.axes[2]
        return i64(0) if width.blocks == 1 else first[2] * i64(width.span)

    @property
    def line_voxels(self) -> int:
        """Outputs that fill a line."""
        return LINE_BYTES // numpy_dtype(self.form.work.output_dtype).itemsize

    @property
    def _cuts(self) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
        """The pieces of a row, along channels and voxels; where blocks have parts of rows, of one.

        Its last piece is shorter then if any part ends within a line.
        """
        voxels = finish.chunks(self._row_part, self.line_voxels)
        if self._row_ends[0] == 0 != self._row_ends[1]:
            voxels.append((self._row_part, 1, self._row_ends[1]))
        return finish.chunks(self.form.work.plan.filters, self.piece_channels), voxels

    @property
    def _row_part(self) -> int:
        """Outputs of a block along the width."""
        return self.form.rows_shape[3]

    @property
    def _row_ends(self) -> tuple[int, int]:
        """Outputs behind the last whole line of a part of a row, and of the last part."""
        last = self.form.axes[2].axis.out % self._row_part
        return self._row_part % self.line_voxels, last % self.line_voxels

    def _row_voxels(self, unit: Unit, number: Any) -> Iterator[tuple[Any, int, Any]]:
        """What piece ``number`` of a row may be: its first voxel, its size, whether it is that."""
        width = self.form.axes[2]
        if width.blocks == 1:
            yield from _which(self._cuts[1], number)
            return
        left = i64(width.axis.out) - unit.width
        length, whole = tirx.min(i64(self._row_part), left), self._row_part // self.line_voxels
        begin = number * i64(self.line_voxels)
        inside = begin + i64(self.line_voxels) <= length
        yield begin, self.line_voxels, tirx.all(number < i64(whole), inside)
        rest = width.axis.out % self._row_part or self._row_part
        is_last = left <= i64(rest)
        for size in sorted({self._row_part % self.line_voxels, rest % self.line_voxels} - {0}):
            here = [number == i64(whole)]
            if size != self._row_part % self.line_voxels:
                here.append(is_last)
            elif size != rest % self.line_voxels:
                here.append(tirx.Not(is_last))
            yield length - i64(size), size, tirx.all(*here)

    @property
    def piece_channels(self) -> int:
        """Channels of a piece."""
        return self.form.tiling.stretch or self.vector

    @property
    def pieces(self) -> int:
        """Pieces of a unit."""
        channels, voxels = (sum(part[1] for part in cut) for cut in self._cuts)
        return math.prod(self.form.rows_shape[1:3]) * channels * voxels

    def _unit(self, number: Any, unit: Any, exists: Any) -> Unit:
        """Unit ``unit`` of block ``number``."""
        n, index = divide(number, self.frame.tiles_per_sample)
        phases = divide(unit, self.form.axes[1].axis.stride)
        places = []
        for axis, begin, phase in zip(
            self.form.axes[:2], self.first(index)[:2], phases, strict=True
        ):
            offsets = [place for group in axis.classes for place in group.places]
            places.append(begin * i64(axis.span) + pick(offsets, phase))
        pieces = tirx.Select(exists, i64(self.pieces), i64(0))
        found = [n, *places, self._slot(number, unit), pieces]
        if self.form.axes[2].blocks == 1:
            return Unit(*[*held(found), i64(0)])
        return Unit(*held([*found, self._row_begin(self.first(index))]))

    def piece(self, unit: Unit, number: Any) -> Piece:
        """Piece ``number`` of a unit."""
        cuts = self._cuts
        channels, voxels = (sum(part[1] for part in cut) for cut in cuts)
        # The rows of some channels lie in one page: they follow each other.
        rest, voxel = divide(number, voxels)
        rest, h = divide(rest, self.form.rows_shape[2])
        d, channel = divide(rest, channels)
        depth, height = (i64(axis.axis.stride) for axis in self.form.axes[:2])
        od, oh = unit.depth + d * depth, unit.height + h * height
        return Piece(*held([d, h, od, oh, channel, voxel]))

    def write(self, unit: Unit, begin: Any, count: Any) -> None:
        """Write ``count`` pieces of a unit from number ``begin`` on, if they exist."""
        streaming.either(
            self.frame,
            lambda: self._write(unit, begin, count, past=True),
            lambda: self._write(unit, begin, count, past=False),
        )

    def _write(self, unit: Unit, begin: Any, count: Any, *, past: bool) -> None:
        """The same past the caches, or without."""
        cut, (depth, height, _) = self._cuts[0], self.form.axes
        with T.serial(i64(0), tirx.min(count, unit.pieces - begin)) as i:
            piece = self.piece(unit, begin + i)
            line = self._rows.part(unit.slot, piece.d, piece.h)
            inside = tirx.all(piece.od < i64(depth.axis.out), piece.oh < i64(height.axis.out))
            with T.If(inside), T.Then():
                for (c, some, fits), (v, others, fit) in itertools.product(
                    _which(cut, piece.channel), self._row_voxels(unit, piece.voxel)
                ):
                    with T.If(tirx.all(fits, fit)), T.Then():
                        channel, w = held([c, v])
                        place = (unit.n, piece.od, piece.oh, unit.width + w)
                        part = Region(line.buffer, line.at(w, channel), line.shape)
                        finish.piece(
                            self.frame, place, channel, part, (others, some), self.vector,
                            few=self.piece_channels < self.vector, past=past,
                        )  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A unit: sample, first output of depth and height, half of the rows, pieces (0: no unit).

    And the first output along the width.
    """

    n: Any
    depth: Any
    height: Any
    slot: Any
    pieces: Any
    width: Any


@dataclass(frozen=True)
class Piece:
    """A piece: its row in the unit and in the output, its number along channels and voxels."""

    d: Any
    h: Any
    od: Any
    oh: Any
    channel: Any
    voxel: Any


def _which(cut: list[tuple[int, int, int]], number: Any) -> Iterator[tuple[Any, int, Any]]:
    """For each size of a piece: the first element of piece ``number``, the size, whether it has it.

    The pieces are numbered in the order of ``cut``.
    """
    before = 0
    for first, count, size in cut:
        begin = i64(first) + (number - i64(before)) * i64(size)
        yield begin, size, tirx.all(number >= i64(before), number < i64(before + count))
        before += count
