"""Which channels-first outputs leave scratch when, and when their lines are asked for.

See `toom_cook_rows`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import streaming
from tvmconv.compute.frame import Region, divide, i64
from tvmconv.compute.toom_cook_block import cells, held

if TYPE_CHECKING:
    from tvmconv.compute.toom_cook_rows import Rows, Unit

__all__ = ["Leaving"]

#: Steps of the products from one line that is asked for once to the next, at most.
_APART = 5


@dataclass(frozen=True)
class Leaving:
    """The pieces of a unit that leave with some products: at most ``each`` a turn.

    ``begin`` is their first turn, of ``turns`` of the unit. Each row of tiles is a turn or,
    ``often``, each register tile of it.
    """

    rows: Rows
    unit: Unit
    begin: Any
    each: int
    turns: int
    often: bool

    def _range(self, turn: Any) -> tuple[Any, Any]:
        """The first piece of a turn, and how many leave, if they exist.

        On Zen 4 evenly: leaving early, they would wait for each other. Not where one leaves in some
        turns alone, which branches would not foresee.
        """
        turn = self.begin + turn
        if not self.rows.form.tiling.compact or self.each == 1:
            return turn * i64(self.each), i64(self.each)
        first, end = (
            tirx.floordiv(some * i64(self.rows.pieces), i64(self.turns))
            for some in (turn, turn + i64(1))
        )
        return first, end - first

    def _asked(self, exists: Any) -> Any:
        """Whether lines are asked for, if they exist: not those that leave past the caches."""
        frame = self.rows.frame
        return tirx.all(exists, tirx.Not(streaming.begins(frame))) if frame.streams else exists

    def asking(self, row: Any, steps: int) -> Callable[[Any, Any], None]:
        """Ask for the lines of the pieces that leave after a row of tiles, in its ``steps``.

        Written unasked for, all channels of a piece would wait for memory at once. What is returned
        takes the steps before a register tile and the number of one of its own.
        """
        rows, unit = self.rows, self.unit
        work = rows.form.work
        # A line a step costs less than to find out whether it was asked for.
        if rows.form.tiling.compact and self.each > 1 and steps > rows.piece_channels:
            return self._asking_once(row, steps)
        last = tirx.max(unit.pieces - i64(1), i64(0))
        most = [i64(axis.axis.out - 1) for axis in rows.form.axes]
        first, _ = self._range(row)
        places = []
        for i in range(self.each):
            number = first + i64(i)
            asked, some = self._asked(number < unit.pieces), tirx.min(number, last)
            if rows.frame.streams:
                some = tirx.Select(asked, some, i64(0))
            piece = rows.piece(unit, some)
            place = (piece.od, piece.oh, unit.width + piece.voxel * i64(rows.line_voxels))
            nearest = [tirx.min(p, end) for p, end in zip(place, most, strict=True)]
            # Where there is none, one line over and over.
            lanes = tirx.Select(asked, i64(1), i64(0))
            places.append(held([tirx.max(unit.n, i64(0)), *nearest, piece.channel, lanes]))
        channels = rows.piece_channels
        share, apart = -(-channels // steps), max(1, steps // channels)

        def step(before: Any, number: Any) -> None:
            index = tirx.floordiv(before + number, i64(apart)) * i64(share)
            for (n, d, h, w, channel, lanes), k in itertools.product(places, range(share)):
                lane = tirx.min(index + i64(k), i64(channels - 1)) * lanes
                lane = tirx.min(channel * i64(channels) + lane, i64(work.plan.filters - 1))
                rows.frame.claim(n, (d, h, w), lane)

        return step

    def _asking_once(self, turn: Any, steps: int) -> Callable[[Any, Any], None]:
        """The same, each line once: asked for again and again they took slots of the products.

        As late as they may be, since caches hold few lines of the same places of channels.
        """
        rows, unit = self.rows, self.unit
        plan = rows.form.work.plan
        channels, voxels = rows.piece_channels, math.prod(axis.out for axis in plan.axes)
        last = tirx.max(unit.pieces - i64(1), i64(0))
        shape = (0, plan.filters, *(axis.out for axis in plan.axes))
        first, count = self._range(turn)
        exists = self._asked(unit.pieces > i64(0))
        begins = []
        for i in range(self.each):
            piece = rows.piece(unit, tirx.min(first + i64(i), last))
            place = (piece.od, piece.oh, unit.width + piece.voxel * i64(rows.line_voxels))
            nearest = [
                tirx.min(p, i64(axis.out - 1)) for p, axis in zip(place, plan.axes, strict=True)
            ]
            channel = tirx.min(piece.channel * i64(channels), i64(plan.filters - 1))
            begins.append(Region(None, 0, shape).at(tirx.max(unit.n, i64(0)), channel, *nearest))
        lines = tirx.Select(exists, count, i64(0)) * i64(channels)
        held = cells([*begins, lines])
        lines = held[i64(self.each)]
        most = channels * self.each
        share, apart = -(-most // steps), max(1, min(_APART, steps // most))
        early = max(0, steps - most * apart)

        def step(before: Any, number: Any) -> None:
            turn, rest = divide(tirx.max(before + number - i64(early), i64(0)), apart)
            for k in range(share):
                index = turn * i64(share) + i64(k)
                piece, lane = divide(index, channels)
                # Past the last channel it is some other line, which does no harm.
                with (
                    T.If(tirx.all(before + number >= i64(early), rest == i64(0), index < lines)),
                    T.Then(),
                ):
                    place = held[piece] + lane * i64(voxels)
                    rows.frame.claim(i64(0), (i64(0), i64(0), place), i64(0))

        return step

    def write(self, row: Any) -> None:
        """Write the pieces that leave with a row of tiles."""
        first, count = self._range(row)
        self.rows.write(self.unit, first, count)
