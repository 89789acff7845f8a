"""The definition: each output voxel gathers its taps.

Right for every legal config, and what other forms are held against.

All three axes have loops with exact bounds, so only inputs that exist are read, in their own dtype
and layout: no scratch, no border, NaN and infinities go exactly where the definition sends them, in
the kernel too. One code serves all phases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks, finish, lanes
from tvmconv.compute.element import widen
from tvmconv.compute.frame import Frame, Region, Row, RowTiles, Taps, i64
from tvmconv.compute.lanes import Group, groups, packed_size
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload

__all__ = ["DefinitionForm"]


@dataclass(frozen=True)
class DefinitionForm:
    """The definition of one workload under one tiling."""

    work: Workload
    tiling: Tiling

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes: always the layer itself."""
        return self.work

    @property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes."""
        tiling = self.tiling
        return groups(self.work, tiling.vector, tiling.registers, tiling.last)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.folded.plan.kernel_shape, *self.groups)

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.folded, self.groups)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy."""
        return lanes.pack(self.work, self.folded, self.groups, kernel, bias)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        cut = self.groups
        bias = cut[-1].lane_offset + cut[-1].blocks * cut[-1].lanes
        line = self.work.plan.axes[2].out * self.work.plan.filters
        scratch = line if finish.needs_line(self.work) else 0
        size = packed_size(self.work, cut)
        tiles = RowTiles(self.work, self.tiling.rows)
        frame = Frame(self.work, tiles.count, size, bias, scratch)

        def tile(n: Any, index: Any) -> None:
            tiles.emit(frame, n, index, None, [lambda row: self._row(frame, row)])

        return frame.kernel(tile), frame

    def _row(self, frame: Frame, row: Row) -> None:
        for number, group in enumerate(self.groups):
            with T.grid(i64(self.work.plan.axes[2].out), i64(group.blocks)) as (w, o):
                with T.sblock(f"voxel_{number}"):
                    vw = T.axis.spatial(i64(self.work.plan.axes[2].out), w)
                    block = T.axis.spatial(i64(group.blocks), o)
                    frame.touch()
                    self._voxel(frame, row, group, str(number), vw, block)
        if finish.needs_line(self.work):
            finish.emit(frame, row, self._line(frame), self.tiling.vector)

    def _voxel(self, frame: Frame, row: Row, group: Group, name: str, w: Any, block: Any) -> None:
        work, plan = self.work, self.work.plan
        dtype = work.accumulate_dtype
        width = Taps.of(plan.axes[2], w)
        axis = plan.axes[2]
        # The width taps are packed phase by phase: those of residue r begin after all smaller
        # residues'.
        base = _taps_before(axis.kernel, axis.stride, width.residue)
        kernel = tuple(a.kernel for a in plan.axes)
        weights = Region(
            frame.weights, group.offset, (group.blocks, *kernel, plan.in_channels, group.lanes)
        )
        sums = T.sblock_alloc_buffer((i64(1), i64(group.lanes)), dtype, scope="local")
        counts = (row.depth.count, row.height.count, width.count, i64(plan.in_channels))
        with T.grid(i64(1), i64(group.lanes), *counts) as (z, v, a, b, t, c):
            with T.sblock(f"{blocks.ACCUMULATE}_{name}"):
                vz, vv = T.axis.spatial(i64(1), z), T.axis.spatial(i64(group.lanes), v)
                va, vb = T.axis.reduce(counts[0], a), T.axis.reduce(counts[1], b)
                vt, vc = T.axis.reduce(counts[2], t), T.axis.reduce(counts[3], c)
                with T.init():
                    lane = i64(group.lane_offset) + block * i64(group.lanes) + vv
                    T.buffer_store(sums, frame.bias[lane], [vz, vv])
                stored = frame.input(
                    row.n,
                    row.depth.input_index(va),
                    row.height.input_index(vb),
                    width.input_index(vt),
                    vc,
                )
                x = widen(stored, work.input_dtype, dtype)
                kd, kh = row.depth.kernel_index(va), row.height.kernel_index(vb)
                product = x * weights.load(block, kd, kh, base + width.first + vt, vc, vv)
                T.buffer_store(sums, sums[vz, vv] + product, [vz, vv])
        line = finish.needs_line(work)
        for start, vectors, size in finish.chunks(group.valid, self.tiling.vector):
            last = (finish.unfinished if line else finish.result)(work, (vectors, size))
            with T.unroll(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(size)) as v:
                lane = i64(start) + o * i64(size) + v
                channel = i64(group.first) + block * i64(group.lanes) + lane
                value = last.at(sums[i64(0), lane], o, v)
                if line:
                    self._line(frame).store(value, w, channel)
                else:
                    frame.output(value, row.n, (row.od, row.oh, w), channel)

    def _line(self, frame: Frame) -> Region:
        return Region(frame.scratch, 0, (self.work.plan.axes[2].out, self.work.plan.filters))


def _taps_before(kernel: int, stride: int, residue: Any) -> Any:
    """Taps of all residues below ``residue``: sum of ceil((kernel - r) / stride)."""
    full, rest = divmod(kernel, stride)
    return residue * i64(full) + tirx.min(residue, i64(rest))
