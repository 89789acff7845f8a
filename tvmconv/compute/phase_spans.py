"""Output rows of the phase form, channels first, that are written span by span.

The voxels of a channel lie side by side and those of two channels far apart, in many sets of few
lines of the caches. Written when a row is done, all channels would wait for memory at once, and for
each other. A span is the voxels that fill a line of each channel: all phases of it are summed, then
its outputs leave, behind the sums of the next one. The last phase asks for their lines, one a step.

Where registers are parts of a line, lines leave half written unless few channels leave together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.frame import Region, Row, i64
from tvmconv.compute.lanes import Group, tap_order
from tvmconv.compute.phase_kernel import Emitter
from tvmconv.compute.tiling import cut
from tvmconv.geometry import Phase

__all__ = ["Spans"]


@dataclass(frozen=True)
class Spans(Emitter):
    """Emits the statements of such a kernel."""

    def parts(self) -> list[Callable[[Row], None]]:
        """The spans of an output row, and what is left over."""
        width, span = self.form.tiling.width, self.form.span
        spans, rest = divmod(self.form.folded.plan.axes[2].size, span)
        found: list[Callable[[Row], None]] = []
        for number, group in enumerate(self.form.groups):
            if spans:
                extents = (spans, span // width, width)
                found.append(partial(self._spans, group, f"{number}", 0, extents))
            done = spans * span
            for part, (tiles, size) in enumerate(cut(rest, width)):
                name = f"{number}_rest_{part}"
                found.append(partial(self._spans, group, name, done, (1, tiles, size)))
                done += tiles * size
        return found

    def _spans(
        self, group: Group, name: str, first: int, extents: tuple[int, int, int], row: Row
    ) -> None:
        """From voxel ``first`` on: so many spans of so many register tiles of so many voxels."""
        spans, tiles, width = extents
        axis = self.form.folded.plan.axes[2]

        def place(a: Any, b: Any) -> tuple[Any, Any]:
            """The block of channels and the first voxel of a span."""
            block, span = T.axis.spatial(i64(group.blocks), a), T.axis.spatial(i64(spans), b)
            self.frame.touch()
            return block, i64(first) + span * i64(tiles * width)

        with T.grid(i64(group.blocks), i64(spans)) as (a, b):
            for index, phase in enumerate(axis.phases):
                with T.serial(i64(0), i64(tiles)) as t:
                    with T.sblock(f"tile_{index}_{name}"):
                        block, q = place(a, b)
                        tile = T.axis.spatial(i64(tiles), t)
                        self._sum(row, phase, group, block, q, tile, width, tiles)
            with T.sblock(f"finish_{name}"):
                block, q = place(a, b)
                channel = i64(group.first) + block * i64(group.lanes)
                self._write(row, group, channel, q, tiles * width)

    def _write(self, row: Row, group: Group, first: Any, q: Any, voxels: int) -> None:
        """Write the outputs of a span of so many voxels from ``q`` on, of the channels of a block.

        These begin with the ``first``. So many channels together as the tiling says.
        """
        vector, axis = self.form.tiling.vector, self.form.folded.plan.axes[2]
        line, voxel = self._span(group, i64(0), voxels), q * i64(axis.stride)
        together = self.form.together
        if not together or group.valid % together:
            finish.emit(self.frame, row, line, vector, first, voxel)
            return
        place = (row.n, row.od, row.oh, voxel)
        with T.serial(i64(0), i64(group.valid // together)) as number:
            lane = number * i64(together)
            part = Region(line.buffer, line.at(i64(0), lane), line.shape)
            size = (line.shape[0], together)
            finish.piece(self.frame, place, first + lane, part, size, vector, few=True)

    def _span(self, group: Group, first: Any, voxels: int) -> Region:
        """The outputs of ``voxels`` voxels of a span in scratch, from voxel ``first`` on."""
        size = self.form.folded.plan.axes[2].stride * group.valid
        offset = i64(self.line_offset) + first * i64(size)
        return Region(self.frame.scratch, offset, (size // group.valid * voxels, group.valid))

    def _sum(
        self, row: Row, phase: Phase, group: Group, block: Any, first: Any, tile: Any, width: int,
        tiles: int,
    ) -> None:  # fmt: skip
        """A register tile: number ``tile`` of the span from voxel ``first`` on."""
        zero, axis = i64(0), self.form.folded.plan.axes[2]
        shape = (i64(width), i64(group.lanes))
        sums = T.sblock_alloc_buffer(shape, self.form.folded.accumulate_dtype, scope="local")
        place = first + tile * i64(width)
        last = (first + i64(tiles * width)) * i64(axis.stride) - i64(1)

        def ask(c: Any) -> None:
            if phase == axis.phases[-1]:
                self._claim_some(row, group, block, last, tile, c, tiles)

        self._start_at_bias(group, block, width, sums)
        entry = self._entry(row, i64(tap_order(axis).index(phase.residue)))
        channels = (zero, self.form.folded.plan.in_channels)
        self._multiply(row, group, block, place, width, sums, entry, zero, channels, ask)
        line = self._span(group, tile * i64(width), width)
        self._leave(row, phase, group, block, place, width, sums, line)

    def _claim_some(
        self, row: Row, group: Group, block: Any, last: Any, tile: Any, c: Any, tiles: int
    ) -> None:
        """Ask for the line of the span's ``last`` output of a channel, or some.

        Each step of the span's tiles takes its share; all at once would hold up the sums. Where
        lines do not begin with a row, the one before was asked for by the span before.
        """
        channels = self.form.folded.plan.in_channels
        steps = channels * tiles
        share = -(-group.valid // steps)
        for number in range(share):
            step = (tile * i64(channels) + c) * i64(share) + i64(number)
            lane = tirx.floordiv(step * i64(group.valid), i64(steps * share))
            channel = i64(group.first) + block * i64(group.lanes) + lane
            self.frame.claim(row.n, (row.od, row.oh, last), channel, near=False)
