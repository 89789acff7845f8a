"""The phase form: every output phase is a dense stride-1 correlation with its own few taps.

For an output row, depth and height are fixed, so their taps are two short loops with exact bounds.
Along the width the phases are code: each has its taps, its voxels ``q`` (a run of consecutive input
positions) and its register tiles of voxels x channel lanes. No zero is inserted, sums stay in
registers (see `phase_stretches` for the exception), every output is written once.

Along the width a border of zeros in the packed rows stands for the inputs that do not exist. Their
products are zeros where the kernel is finite; kernels that are not go to the definition form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmconv.compute import finish, lanes, streaming
from tvmconv.compute.frame import LINE_BYTES, Frame, Region, RowTiles, i64
from tvmconv.compute.lanes import Group, groups, packed_size
from tvmconv.compute.tiling import Piece, Tiling, cut, pieces
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Phase
from tvmconv.policies import numpy_dtype

__all__ = ["PhaseForm", "border", "computed", "needs_packing"]

#: Elements of the longest line of a cache.
_ALIGN = 16
#: Loops of a kernel whose rows are cut tap by tap: more are too much code for what they save.
_MOST_LOOPS = 20
#: The same of the ends of rows, and the least share of products that they save: less is lost again
#: where their code needs more addresses than a small processor has registers.
_MOST_EDGE_LOOPS, _LEAST_WASTED = 40, 0.04
#: Sums of a register tile that hide the latency of their products.
_ENOUGH_SUMS = 12


def border(work: Workload) -> tuple[int, int]:
    """Zeros needed left and right of an input row."""
    axis = work.plan.axes[2]
    left = right = 0
    for phase in axis.phases:
        if phase.taps and phase.count:
            left = max(left, (phase.taps - 1) * axis.dilation - phase.first)
            right = max(right, phase.first + phase.count - axis.size)
    return left, right


def needs_packing(work: Workload) -> bool:
    """Whether a register tile cannot read the input as it lies.

    Another dtype, another layout, a border.
    """
    return (
        work.input_dtype != work.accumulate_dtype
        or work.plan.channels_first
        or border(work) != (0, 0)
    )


def computed(work: Workload, tiling: Tiling) -> Workload:
    """The workload that the kernel of a tiling computes."""
    inner = work.couple() if tiling.coupled else work
    return inner.folded() if tiling.fold else inner


@dataclass(frozen=True)
class PhaseForm:
    """The phase form of one workload under one tiling."""

    work: Workload
    tiling: Tiling

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes."""
        return computed(self.work, self.tiling)

    @property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes."""
        tiling = self.tiling
        return groups(self.folded, tiling.vector, tiling.registers, tiling.last)

    @property
    def packs(self) -> bool:
        """Whether input rows are copied to scratch."""
        return self.tiling.pack or needs_packing(self.folded)

    @property
    def flows(self) -> bool:
        """Whether each input is read where it lies, and by the sums of one voxel alone."""
        return not self.packs and all(axis.is_flat for axis in self.folded.plan.axes)

    @property
    def asks(self) -> bool:
        """Whether register tiles ask for the inputs of later ones (`phase_flow`)."""
        split = not self.packs and all(axis.is_split for axis in self.folded.plan.axes)
        tiling = self.tiling
        return self.flows or (split and tiling.fetch and not (tiling.stationary or tiling.coupled))

    @property
    def border(self) -> tuple[int, int]:
        """Zeros left and right of a packed row."""
        return border(self.folded)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Packed input: planes (one a depth tap), rows, voxels with the border, channels."""
        if not self.packs:
            return (0, 0, 0, 0)
        plan = self.folded.plan
        left, right = self.border
        return (*self.tiles.packed, left + plan.axes[2].size + right, plan.in_channels)

    @property
    def tiles(self) -> RowTiles:
        """The task tiles."""
        tiling = self.tiling
        return RowTiles(self.folded, tiling.rows, tiling.splits, tiling.stationary)

    @property
    def has_line(self) -> bool:
        """Whether output rows pass through scratch: where they must, and for long activations."""
        if finish.needs_line(self.work):
            return True
        whole_rows = self.tiling.splits == 1 and not self.tiling.stationary
        return whole_rows and finish.is_long(self.work)

    @property
    def fills_lines(self) -> bool:
        """Whether the channels of a voxel, and of each block, are whole lines.

        Of rows that do not pass through scratch.
        """
        if self.has_line or self.tiling.stationary:
            return False
        dtype, vector = self.work.output_dtype, self.tiling.vector
        blocks = [group.valid for group in self.groups if group.valid % vector == 0]
        return len(blocks) == len(self.groups) and all(streaming.fills(n, dtype) for n in blocks)

    @property
    def streams(self) -> bool:
        """Whether register tiles store past the caches."""
        return self.tiling.stream and self.fills_lines

    @property
    def span(self) -> int:
        """Voxels of some register tiles whose outputs, of all phases, fill a line of each channel.

        Channels first, where each output has one tap: they leave scratch when a span is summed, and
        not when a row is. 0 elsewhere.
        """
        work, axes = self.work, self.work.plan.axes
        stride = axes[2].stride
        elements = LINE_BYTES // numpy_dtype(work.output_dtype).itemsize
        if not work.plan.channels_first or work.mixed_axes or self.tiling.stationary:
            return 0
        if stride == 1 or elements % stride or not all(axis.is_split for axis in axes):
            return 0
        width = self.tiling.width
        return width * max(1, elements // stride // width)

    @property
    def together(self) -> int:
        """Channels of a span that leave scratch together; 0: as many as a register has lanes."""
        return self.tiling.stretch if self.span else 0

    @property
    def line_shape(self) -> tuple[int, ...]:
        """An output row in scratch before it is finished: voxels, channels.

        Of stationary tiles all rows of a phase, (depth, height, voxels, channels).
        """
        if not self.has_line:
            return (0, 0)
        depth, height, width = self.folded.plan.axes
        if self.span:
            return (self.span * width.stride, max(group.valid for group in self.groups))
        row = (width.out, self.folded.plan.filters // self.tiling.splits)
        if not self.tiling.stationary:
            return row
        return (-(-depth.out // depth.stride), -(-height.out // height.stride), *row)

    @property
    def stretch(self) -> int:
        """Input channels of a stretch of weights, which all rows of a stationary tile take in turn.

        0 where each row takes all of its weights.
        """
        stretch = self.tiling.stretch if self.tiling.stationary else 0
        return 0 if not stretch or self.folded.plan.in_channels % stretch else stretch

    @property
    def is_uneven(self) -> bool:
        """Whether each task tile has one block of channels, and the last of them a shorter one."""
        found = self.groups
        return len(found) == 2 and self.tiling.splits == found[0].blocks + 1

    def share(self, group: Group) -> int:
        """Blocks of a group that a task tile has."""
        return 1 if self.is_uneven else group.blocks // self.tiling.splits

    def first_block(self, group: Group, split: Any) -> Any:
        """The first of them in task tile ``split`` of those that share the channels."""
        if self.is_uneven and group.first:
            return i64(0)
        return split * i64(self.share(group))

    def reached(self, phase: Phase) -> list[tuple[int, int, tuple[int, int]]]:
        """The taps of a phase along the width, and the voxels whose input exists for them.

        The first tap, the number of those behind it that reach the same voxels, the first of these
        and the one behind the last. All voxels of the row, with the zeros of its border, where that
        would be too much code.
        """
        whole = [(0, phase.taps, (0, phase.count))]
        if self.sums_stay or self._loops() > _MOST_LOOPS:
            return whole
        return self._spans(phase)

    def _spans(self, phase: Phase) -> list[tuple[int, int, tuple[int, int]]]:
        found: list[tuple[int, int, tuple[int, int]]] = []
        for tap in range(phase.taps):
            span = self.folded.plan.axes[2].reached(phase, tap)
            if found and found[-1][2] == span:
                found[-1] = (found[-1][0], found[-1][1] + 1, span)
            elif span[0] < span[1]:
                found.append((tap, 1, span))
        return found

    def _loops(self) -> int:
        """Loops over the channels of a register tile, where each tap has its own voxels."""
        spans = [
            end - first
            for phase in self.folded.plan.axes[2].phases
            for _, _, (first, end) in self._spans(phase)
        ]
        widths = [self.width(group) for group in self.groups]
        return sum(len(cut(voxels, width)) for voxels in spans for width in widths)

    @property
    def skips_border(self) -> bool:
        """Whether tiles at the ends of a row leave out the products with zeros of its border.

        Where these are some of all, in rows of a few voxels, and it is not too much code.
        """
        if self.tiling.stationary or self.span or self.flows or self.border == (0, 0):
            return False
        axis = self.folded.plan.axes[2]
        phases = [phase for phase in axis.phases if phase.count]
        made = sum(phase.taps * phase.count for phase in phases)
        loops = sum(
            phase.taps
            for phase in phases
            for group in self.groups
            for piece in self.pieces(phase, group)
            if not piece.whole
        )
        wasted = 1 - axis.useful_taps / max(1, made)
        return wasted >= _LEAST_WASTED and loops <= _MOST_EDGE_LOOPS

    def width(self, group: Group) -> int:
        """Most voxels of a register tile of a group.

        A last block of fewer registers has more voxels, or its sums would wait for each other; not
        where tiles ask for the inputs of later ones, which are as wide.
        """
        tiling = self.tiling
        vectors = group.lanes // tiling.vector
        if self.asks:
            return tiling.width
        most = tiling.width * tiling.registers // vectors
        return max(tiling.width, min(most, _ENOUGH_SUMS // vectors))

    def pieces(self, phase: Phase, group: Group) -> list[Piece]:
        """The register tiles of a row of a phase."""
        return pieces(self.folded.plan.axes[2], phase, self.width(group))

    @property
    def sums_stay(self) -> bool:
        """Whether a stretch is all that an output has: its sums never leave the registers."""
        depth, height, width = self.folded.plan.axes
        return (
            self.stretch == self.folded.plan.in_channels
            and width.max_taps == 1
            and all(axis.max_taps == 1 and axis.useful_taps == axis.out for axis in (depth, height))
        )

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """Sums that wait for their next stretch: rows of a phase (depth, height), voxels, lanes."""
        if not self.stretch or self.sums_stay:
            return (0, 0, 0, 0)
        depth, height, width = self.folded.plan.axes
        voxels = max(phase.count for phase in width.phases)
        rows = (-(-axis.out // axis.stride) for axis in (depth, height))
        return (*rows, voxels, max(group.lanes for group in self.groups))

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
        from tvmconv.compute.phase_edges import Edges
        from tvmconv.compute.phase_flow import Flow
        from tvmconv.compute.phase_kernel import Emitter
        from tvmconv.compute.phase_spans import Spans
        from tvmconv.compute.phase_stretches import Stretches

        rows = Region(None, 0, self.rows_shape).size
        line = Region(None, 0, self.line_shape).size
        # Registers of sums must not lie across lines of the cache.
        sums = -(-(rows + line) // _ALIGN) * _ALIGN
        scratch = sums + Region(None, 0, self.sums_shape).size
        cut_lanes = self.groups
        bias = cut_lanes[-1].lane_offset + cut_lanes[-1].blocks * cut_lanes[-1].lanes
        size = packed_size(self.folded, cut_lanes)
        if self.stretch:
            frame = Frame(self.folded, self.tiles.count, size, bias, scratch)
            return frame.kernel(Stretches(self, frame, rows, 0, sums).tile), frame
        frame = Frame(self.folded, self.tiles.count, size, bias, rows + line, self.streams)
        kind = Spans if self.span else Edges if self.skips_border else Emitter
        emit = (Flow if self.asks else kind)(self, frame, rows, 0)
        pack = emit.pack if self.packs else None
        parts = emit.parts()

        def tile(n: Any, index: Any) -> None:
            self.tiles.emit(frame, n, index, pack, parts)

        return streaming.kernel(frame, tile), frame
