"""Stationary task tiles of the phase form whose rows take the weights stretch by stretch.

A stretch is some input channels of one tap. All rows of the tile add its products to their sums,
which wait in scratch for the next one, while it stays in the first-level cache. The products of a
stretch ask for the next one's weights, evenly: taken by one row, and then by the other rows from
the second-level cache, they would come from memory in bursts, and the products wait for them.

A stretch is taken by the voxels that its tap reaches, and by no others: of a row of four voxels
with two taps, one product in eight would be with a zero of the border.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import LINE_BYTES, Region, Row, Taps, divide, every, i64
from tvmconv.compute.lanes import Group, tap_order
from tvmconv.compute.phase_kernel import Emitter
from tvmconv.compute.tiling import cut
from tvmconv.geometry import Axis, Phase
from tvmconv.policies import numpy_dtype

__all__ = ["Stretches"]


@dataclass(frozen=True)
class _Walk:
    """The outputs of one phase along the depth or the height, counted from 0."""

    axis: Axis
    residue: Any

    @property
    def taps(self) -> Any:
        """Taps of the phase."""
        return tirx.floordiv(
            i64(self.axis.kernel + self.axis.stride - 1) - self.residue, i64(self.axis.stride)
        )

    @property
    def count(self) -> Any:
        """Outputs of the phase."""
        return every(self.axis, self.residue)[1]

    @property
    def position(self) -> Any:
        """The input position of the first output's first tap."""
        first = every(self.axis, self.residue)[0]
        return tirx.floordiv(first + i64(self.axis.lo), i64(self.axis.stride))

    def kernel_index(self, tap: Any) -> Any:
        """The entry of the kernel for a tap."""
        return self.residue + tap * i64(self.axis.stride)

    def reached(self, tap: Any) -> tuple[Any, Any]:
        """The outputs whose input exists for a tap: the first of them and their number."""
        shift = tap * i64(self.axis.dilation) - self.position
        first = tirx.max(shift, i64(0))
        last = tirx.min(self.count, i64(self.axis.size) + shift)
        return first, tirx.max(last - first, i64(0))

    def at(self, number: Any, tap: Any) -> tuple[Any, Taps]:
        """An output, and one tap of it."""
        first, _, step = every(self.axis, self.residue)
        taps = Taps(self.axis, self.residue, self.position + number, tap, i64(1))
        return first + number * i64(step), taps


@dataclass(frozen=True)
class _Tile:
    """A task tile: sample, part of the channels, phases of depth and height."""

    n: Any
    split: Any
    depth: _Walk
    height: _Walk

    def row(self, place: tuple[Any, Any], taps: tuple[Any, Any]) -> Row:
        """An output row, with one tap of the depth and of the height."""
        od, depth = self.depth.at(place[0], taps[0])
        oh, height = self.height.at(place[1], taps[1])
        return Row(self.n, od, oh, depth, height, (i64(0), i64(0)), self.split)


@dataclass(frozen=True)
class _Part:
    """A phase of the width, a block of lanes, and where the weights begin that come after it."""

    phase: Phase
    group: Group
    block: Any
    following: Any


@dataclass(frozen=True)
class _Stretch:
    """A stretch of weights: its taps, its first channel, and where the next one begins.

    ``span`` are the voxels that it reaches: the first of them and the one behind the last.
    """

    depth: Any
    height: Any
    width: Any
    channel: Any
    following: Any
    span: tuple[int, int]


@dataclass(frozen=True)
class Stretches(Emitter):
    """Emits the statements of such a kernel."""

    sums_offset: int

    @property
    def _sums(self) -> Region:
        return Region(self.frame.scratch, self.sums_offset, self.form.sums_shape)

    def tile(self, n: Any, index: Any) -> None:
        """One task tile."""
        here = self._tile_at(n, index)
        if self.form.packs:
            # The whole input, once for the tiles of a call.
            with T.If(self.frame.begins), T.Then():
                self.pack(n, (i64(0), i64(0)))
        index = tirx.floormod(index + i64(1), i64(self.form.tiles.count))
        following = self._earliest(self._tile_at(n, index))
        if self.form.is_uneven:
            full, rest = self.form.groups
            with T.If(here.split < i64(full.blocks)):
                with T.Then():
                    self._parts("full", here, [full], following)
                with T.Else():
                    self._parts("rest", here, [rest], following)
        else:
            self._parts("all", here, self.form.groups, following)
        if self.form.has_line:
            self._every_row("finish", here, self._finish)

    def _parts(self, name: str, tile: _Tile, some: list[Group], following: Any) -> None:
        """The phases of the width and ``some`` groups of a tile."""
        phases = [one for one in self.form.folded.plan.axes[2].phases if one.count]
        found = [(phase, group) for phase in phases for group in some]
        for number, (phase, group) in enumerate(found):
            if not phase.taps:
                fill = partial(self._fill, phase=phase, group=group)
                self._every_row(f"fill_{name}_{number}", tile, fill)
                continue
            later = next((one for one in found[number + 1 :] if one[0].taps), None)
            next_one = self._begin(tile, *later) if later else following
            part = _Part(phase, group, tile.split, next_one)
            self._blocks(f"{name}_{number}", tile, part)

    def _earliest(self, tile: _Tile) -> Any:
        """Where the weights begin that a tile takes first."""
        phases = self.form.folded.plan.axes[2].phases
        phase = next(one for one in phases if one.count and one.taps)
        starts = [self._begin(tile, phase, group) for group in self.form.groups]
        if not self.form.is_uneven:
            return starts[0]
        return tirx.Select(tile.split < i64(self.form.groups[0].blocks), *starts)

    def _tile_at(self, n: Any, index: Any) -> _Tile:
        depth, height, _ = self.form.folded.plan.axes
        rest, split = divide(index, self.form.tiling.splits)
        residues = divide(rest, height.stride)
        return _Tile(n, split, _Walk(depth, residues[0]), _Walk(height, residues[1]))

    def _begin(self, tile: _Tile, phase: Phase, group: Group, number: Any = None) -> Any:
        """Where the weights of a tile's phase and one of its blocks (its first one) begin."""
        # A phase may have no tap.
        entries = (
            tirx.min(walk.residue, i64(walk.axis.kernel - 1)) for walk in (tile.depth, tile.height)
        )
        zero = i64(0)
        block = self.form.first_block(group, tile.split)
        block = block if number is None else block + number
        return self._weights(group).at(block, *entries, self._base(phase), zero, zero)

    def _base(self, phase: Phase) -> Any:
        """Where the taps of a phase of the width begin."""
        return i64(tap_order(self.form.folded.plan.axes[2]).index(phase.residue))

    def _every_row(self, name: str, tile: _Tile, body: Callable[[Row], None]) -> None:
        depth, height = tile.depth, tile.height
        with T.grid(depth.count, height.count) as (i, j):
            with T.sblock(name):
                d = T.axis.spatial(i64(depth.axis.out), i)
                h = T.axis.spatial(i64(height.axis.out), j)
                self.frame.touch()
                body(tile.row((d, h), (i64(0), i64(0))))

    def _blocks(self, name: str, tile: _Tile, part: _Part) -> None:
        """The blocks of lanes of a tile's part."""
        share = self.form.share(part.group)
        first = self.form.first_block(part.group, tile.split)
        if share == 1:
            self._sum(name, tile, _Part(part.phase, part.group, first, part.following))
            return
        with T.serial(i64(0), i64(share)) as count:
            with T.sblock(f"block_{name}"):
                block = T.axis.spatial(i64(share), count)
                self.frame.touch()
                later = block + i64(1)
                following = tirx.Select(
                    later < i64(share),
                    self._begin(tile, part.phase, part.group, later),
                    part.following,
                )
                self._sum(name, tile, _Part(part.phase, part.group, first + block, following))

    def _sum(self, name: str, tile: _Tile, part: _Part) -> None:
        """The rows of a part and a block."""
        stay = self.form.sums_stay
        if not stay:
            self._all_tiles(f"start_{name}", tile, part, self._start)
        depth, height, _ = self.form.folded.plan.axes
        pieces = self.form.folded.plan.in_channels // self.form.stretch
        with T.grid(tile.depth.taps, tile.height.taps) as (a, b):
            with T.sblock(f"taps_{name}"):
                va = T.axis.spatial(i64(depth.max_taps), a)
                vb = T.axis.spatial(i64(height.max_taps), b)
                self.frame.touch()
                for first, taps, span in self.form.reached(part.phase):
                    with T.serial(i64(0), i64(taps * pieces)) as u:
                        with T.sblock(f"stretch_{name}_{first}"):
                            vu = T.axis.spatial(i64(taps * pieces), u)
                            self.frame.touch()
                            unit = i64(first * pieces) + vu
                            stretch = self._stretch(tile, part, (va, vb, unit), span)
                            rows = f"rows_{name}_{first}"
                            self._all_tiles(rows, tile, part, self._add, stretch)
        if not stay:
            self._all_tiles(f"end_{name}", tile, part, self._end)

    def _stretch(
        self, tile: _Tile, part: _Part, place: tuple[Any, Any, Any], span: tuple[int, int]
    ) -> _Stretch:
        """The stretch at ``place``: tap of the depth, of the height, and its number in these."""
        a, b, unit = place
        pieces = self.form.folded.plan.in_channels // self.form.stretch
        weights, base, zero = self._weights(part.group), self._base(part.phase), i64(0)

        def at(a: Any, b: Any, unit: Any) -> Any:
            tap, piece = divide(unit, pieces)
            entries = tile.depth.kernel_index(a), tile.height.kernel_index(b)
            channel = piece * i64(self.form.stretch)
            return weights.at(part.block, *entries, base + tap, channel, zero)

        one = i64(1)
        later = part.following
        for is_next, following in (
            (a + one < tile.depth.taps, (a + one, zero, zero)),
            (b + one < tile.height.taps, (a, b + one, zero)),
            (unit + one < i64(part.phase.taps * pieces), (a, b, unit + one)),
        ):
            later = tirx.Select(is_next, at(*following), later)
        tap, piece = divide(unit, pieces)
        return _Stretch(a, b, tap, piece * i64(self.form.stretch), later, span)

    def _all_tiles(
        self, name: str, tile: _Tile, part: _Part, body: Any, stretch: _Stretch | None = None
    ) -> None:
        """``body`` for each register tile of a part that a stretch reaches.

        Of the whole part without one.
        """
        zero = i64(0)
        voxels = stretch.span if stretch else (0, part.phase.count)
        cuts = cut(voxels[1] - voxels[0], self.form.width(part.group))
        spans = [(zero, tile.depth.count), (zero, tile.height.count)]
        taps = (zero, zero)
        if stretch:
            taps = (stretch.depth, stretch.height)
            spans = [tile.depth.reached(stretch.depth), tile.height.reached(stretch.height)]
        (first_d, depths), (first_h, heights) = spans
        done = before = 0
        for number, (tiles, width) in enumerate(cuts):
            with T.grid(depths, heights, i64(tiles)) as (i, j, k):
                with T.sblock(f"{name}_{number}"):
                    vi = T.axis.spatial(i64(tile.depth.axis.out), i)
                    vj = T.axis.spatial(i64(tile.height.axis.out), j)
                    vk = T.axis.spatial(i64(tiles), k)
                    self.frame.touch()
                    place = (first_d + vi, first_h + vj)
                    row = tile.row(place, taps)
                    voxel = i64(voxels[0] + done) + vk * i64(width)
                    if stretch:
                        total = sum(tiles for tiles, _ in cuts)
                        passed = (vi * heights + vj) * i64(total) + i64(before) + vk
                        body(row, part, place, voxel, width, stretch, passed)
                    else:
                        body(row, part, place, voxel, width)
            done += tiles * width
            before += tiles

    def _start(self, row: Row, part: _Part, place: tuple[Any, Any], voxel: Any, width: int) -> None:
        """Sums start as the bias."""
        phase, group = part.phase, part.group
        self._claim(row, phase, group, part.block, i64(phase.first) + voxel, width)
        first = i64(group.lane_offset) + part.block * i64(group.lanes)

        def start(w: Any, lane: Any) -> None:
            self._sums.store(self.frame.bias[first + lane], *place, voxel + w, lane)

        self._each(width, group, start)

    def _end(self, row: Row, part: _Part, place: tuple[Any, Any], voxel: Any, width: int) -> None:
        """Sums through the activation to their place."""
        sums = self._load(part.group, place, voxel, width)
        q = i64(part.phase.first) + voxel
        self._leave(row, part.phase, part.group, part.block, q, width, sums)

    def _registers(self, group: Group, width: int) -> Any:
        shape = (i64(width), i64(group.lanes))
        return T.sblock_alloc_buffer(shape, self.form.folded.accumulate_dtype, scope="local")

    def _load(self, group: Group, place: tuple[Any, Any], voxel: Any, width: int) -> Any:
        """Registers with the sums that wait."""
        sums = self._registers(group, width)

        def load(w: Any, lane: Any) -> None:
            T.buffer_store(sums, self._sums.load(*place, voxel + w, lane), [w, lane])

        self._each(width, group, load)
        return sums

    def _add(
        self, row: Row, part: _Part, place: tuple[Any, Any], voxel: Any, width: int,
        stretch: _Stretch, passed: Any,
    ) -> None:  # fmt: skip
        """The products of a stretch and a register tile, after ``passed`` of those it reaches."""
        phase, group, block = part.phase, part.group, part.block
        q = i64(phase.first) + voxel
        if self.form.sums_stay:
            self._claim(row, phase, group, block, q, width)
            sums = self._registers(group, width)
            self._start_at_bias(group, block, width, sums)
        else:
            sums = self._load(group, place, voxel, width)

        def ask(c: Any) -> None:
            self._bring(part, stretch, passed * i64(self.form.stretch) + c)

        tap = stretch.width
        entry = self._entry(row, self._base(phase) + tap)
        channels = (stretch.channel, self.form.stretch)
        self._multiply(row, group, block, q, width, sums, entry, tap, channels, ask)
        if self.form.sums_stay:
            self._leave(row, phase, group, block, q, width, sums)
        else:

            def keep(w: Any, lane: Any) -> None:
                self._sums.store(sums[w, lane], *place, voxel + w, lane)

            self._each(width, group, keep)

    def _bring(self, part: _Part, stretch: _Stretch, step: Any) -> None:
        """Bring step ``step``'s share of the next stretch into the second-level cache.

        A stretch that few rows take is asked for sooner, one that more of them take is followed by
        the next.
        """
        depth, height, _ = self.form.folded.plan.axes
        first, end = stretch.span
        tiles = sum(tiles for tiles, _ in cut(end - first, self.form.width(part.group)))
        share = -(-part.group.lanes // (_least_rows(depth) * _least_rows(height) * tiles))
        line = LINE_BYTES // numpy_dtype(self.form.folded.accumulate_dtype).itemsize
        start = stretch.following + step * i64(share)
        for offset in range(0, share, line):
            address = tirx.address_of(self.frame.weights[start + i64(offset)])
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))


def _least_rows(axis: Axis) -> int:
    """The fewest outputs of a phase along an axis that one of its taps reaches."""
    counts = [
        min(phase.first + phase.count, axis.size + tap * axis.dilation)
        - max(phase.first, tap * axis.dilation)
        for phase in axis.phases
        for tap in range(phase.taps)
    ]
    return min((count for count in counts if count > 0), default=1)
