"""Register tiles at the ends of a row, without the products whose input does not exist.

A tile in the middle of a row has an input for each tap. At the ends a tap misses some voxels: in a
row of seven with five taps, one product in six would be with a zero of the border. There the taps
are code, each with the voxels that it reaches.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import Row, i64
from tvmconv.compute.lanes import Group, tap_order
from tvmconv.compute.phase_kernel import Emitter
from tvmconv.compute.tiling import Piece
from tvmconv.geometry import Phase

__all__ = ["Edges"]


@dataclass(frozen=True)
class Edges(Emitter):
    """Emits the statements of such a kernel."""

    def _tiles(self, row: Row, phase: Phase, group: Group, name: str) -> None:
        pieces = self.form.pieces(phase, group)
        if all(piece.whole for piece in pieces):
            super()._tiles(row, phase, group, name)
            return
        share = group.blocks // self.form.tiling.splits
        if not self.form.tiling.channels_outer:
            for number, piece in enumerate(pieces):
                self._piece(row, phase, group, f"{name}_{number}", piece, share)
            return
        with T.serial(i64(0), i64(share)) as count:
            with T.sblock(f"block_{name}"):
                block = T.axis.spatial(i64(share), count)
                self.frame.touch()
                for number, piece in enumerate(pieces):
                    self._piece(row, phase, group, f"{name}_{number}", piece, 1, block)

    def _piece(
        self, row: Row, phase: Phase, group: Group, name: str, piece: Piece, blocks: int,
        first: Any = 0,
    ) -> None:  # fmt: skip
        """Tiles of one width, each with so many blocks of channels from the first on."""
        share = group.blocks // self.form.tiling.splits
        with T.grid(i64(piece.tiles), i64(blocks)) as (t, b):
            with T.sblock(f"tile_{name}"):
                tile = T.axis.spatial(i64(piece.tiles), t)
                block = first + T.axis.spatial(i64(blocks), b) + row.split * i64(share)
                self.frame.touch()
                if piece.whole:
                    q = i64(phase.first + piece.first) + tile * i64(piece.width)
                    self._tile(row, phase, group, name, block, q, piece.width)
                else:
                    self._edge(row, phase, group, name, block, piece)

    def _edge(
        self, row: Row, phase: Phase, group: Group, name: str, block: Any, piece: Piece
    ) -> None:
        """A register tile whose taps miss some of its voxels."""
        plan = self.form.folded.plan
        q, width = i64(phase.first + piece.first), piece.width
        sums = T.sblock_alloc_buffer(
            (i64(width), i64(group.lanes)), self.form.folded.accumulate_dtype, scope="local"
        )
        self._claim(row, phase, group, block, q, width)
        self._start_at_bias(group, block, width, sums)
        with T.grid(row.depth.count, row.height.count) as (a, b):
            with T.sblock(f"taps_{name}"):
                depth = T.axis.spatial(i64(plan.axes[0].max_taps), a)
                height = T.axis.spatial(i64(plan.axes[1].max_taps), b)
                self.frame.touch()
                for tap in range(phase.taps):
                    voxels = piece.reached(plan.axes[2], phase, tap)
                    if voxels[0] < voxels[1]:
                        taps = (depth, height, tap)
                        self._add(row, phase, group, block, q, voxels, sums, taps)
        self._leave(row, phase, group, block, q, width, sums)

    def _add(
        self, row: Row, phase: Phase, group: Group, block: Any, q: Any, voxels: tuple[int, int],
        sums: Any, taps: tuple[Any, Any, int],
    ) -> None:  # fmt: skip
        """The products of one tap of each axis and some voxels of a tile."""
        plan = self.form.folded.plan
        start = i64(voxels[0])
        a, b, tap = taps
        position = i64(tap_order(plan.axes[2]).index(phase.residue) + tap)
        entry = row.depth.kernel_index(a), row.height.kernel_index(b), position
        with T.serial(i64(0), i64(plan.in_channels)) as c:
            self._step(
                voxels[1] - voxels[0], group, sums, (block, *entry, c),
                partial(self._input_of, row, (a, b), q + start, i64(tap), c), start,
            )  # fmt: skip
