"""The phase form on tensor cores by ``mma.sync``: float16, bfloat16, and float32 rounded to TF32.

Slices come to shared memory by `tvmconv.compute.cuda.pipeline`, and sums stay in registers, from
which the threads store neighbouring columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import lanes
from tvmconv.compute.cuda.fragments import WARP
from tvmconv.compute.cuda.operands import COLUMNS, ROW_BYTES, Rows
from tvmconv.compute.cuda.phase_form import STATIC_SHARED, Block, PhaseForm
from tvmconv.compute.cuda.pipeline import Pipeline
from tvmconv.compute.cuda.slices import columns_group
from tvmconv.compute.cuda.store import store_tile
from tvmconv.compute.cuda.tensor import TILE_COLUMNS, TILE_ROWS, WarpSums
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.lanes import Group

__all__ = ["CudaMma"]


@dataclass(frozen=True)
class CudaMma(PhaseForm):
    """The phase form of one workload under one tiling.

    ``tiling.voxels`` and ``tiling.lanes`` are the rows and columns that a warp computes. Where a
    block has more warps than its tile needs, each of them multiplies its part of every slice, and
    their sums are added, always in the same order.
    """

    @property
    def operands(self) -> Rows:
        """How the numbers lie."""
        return Rows(self.folded)

    @property
    def group(self) -> Group:
        """All columns side by side, in whole groups."""
        return columns_group(self.folded, COLUMNS)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("rows", self.work.input_dtype, self.folded.plan.kernel_shape, self.group)

    @property
    def packed_size(self) -> int:
        """Numbers of the packed weights, without the bias."""
        return self.operands.size

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        """Bytes of the packed weights with the bias, where the bias begins, bytes of an element."""
        operands = self.operands
        size = operands.size * operands.bytes
        return size + 4 * self.group.lanes, size, operands.bytes

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.folded, [self.group], arranged=self.operands)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """The same in NumPy."""
        packed = lanes.pack(self.work, self.folded, [self.group], kernel, bias)
        size = lanes.packed_size(self.folded, [self.group])
        return self.operands.arrange(packed[:size]).tobytes() + packed[size:].tobytes()

    @property
    def warps(self) -> tuple[int, int]:
        """Warps along the voxels and the columns of a block's tile."""
        tiling = self.tiling
        return tiling.block_voxels // tiling.voxels, tiling.block_channels // tiling.lanes

    @property
    def parts(self) -> int:
        """Parts of a slice that different warps multiply."""
        return self.tiling.threads // (WARP * math.prod(self.warps))

    @property
    def rows(self) -> int:
        """Rows of 64 bytes that a slice has of each voxel."""
        return self.tiling.depth // self.operands.depth

    @property
    def parts_shape(self) -> tuple[int, int, int]:
        """Sums that warps hand over: of each part but the first, register and thread."""
        tiling = self.tiling
        return self.parts - 1, tiling.voxels * tiling.lanes // WARP, tiling.threads // self.parts

    @property
    def _slices_bytes(self) -> int:
        tiling = self.tiling
        return tiling.stages * self.rows * (tiling.block_voxels + tiling.block_channels) * ROW_BYTES

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self._slices_bytes + 4 * math.prod(self.parts_shape)

    @property
    def dynamic_bytes(self) -> int:
        """What of it the launch gives."""
        return self._slices_bytes if self.shared_bytes > STATIC_SHARED else 0

    def dtypes(self, serial: bool) -> tuple[str, str]:
        """Of the weights and the input: bits are all that a GPU's kernel copies."""
        dtype = self.operands.dtype
        dtype = dtype if serial or dtype == "float32" else "uint16"
        return dtype, dtype

    def block(self, threads: Threads) -> Block:
        """What a block does."""
        return _Block(self, threads)


class _Block(Pipeline):
    """Sums in the registers of warps."""

    form: CudaMma

    def __init__(self, form: CudaMma, threads: Threads) -> None:
        super().__init__(form, threads, form.dtypes(threads.serial)[1])
        assert form.rows % form.parts == 0, form.tiling

    def allocate(self) -> None:
        """Emit the sums."""
        tiling = self.tiling
        rows, columns = tiling.voxels // TILE_ROWS, tiling.lanes // TILE_COLUMNS
        self.sums = WarpSums.of(self.threads, rows, columns)

    def _warp(self, thread: Any) -> tuple[Any, Any, Any, Any]:
        """The part of a warp, its row and column among the warps of a tile, and the lane."""
        warp, lane = divide(thread, WARP)
        down, across = self.form.warps
        part, own = divide(warp, down * across)
        return (part, *divide(own, across), lane)

    def start(self, thread: Any) -> None:
        """The sums = the bias, in the first part."""
        t, tiling = self.threads, self.tiling
        part = self._warp(thread)[0]
        rows, columns = self.sums.shape
        with T.unroll(t.const(0), t.const(rows)) as i, T.unroll(t.const(0), t.const(columns)) as j:
            column = self._column(thread, j)
            if self.operands.columns % tiling.block_channels:
                # Columns past the last packed ones have no store.
                column = tirx.min(column, t.const(self.operands.columns - 1))
            value = t.bias[column]
            if self.form.parts > 1:
                value = tirx.if_then_else(part == t.const(0), value, tirx.const(0, "float32"))
            self.sums.store(value, thread, i, j)

    def multiply(self, thread: Any, stage: Any) -> None:
        """Each warp its tiles, in its part of the slice."""
        t, tiling, form = self.threads, self.tiling, self.form
        part, down, across, _ = self._warp(thread)
        with T.unroll(t.const(0), t.const(form.rows // form.parts)) as k, t.scope("row"):
            row = k * t.const(form.parts) + part

            def left(voxel: Any, chunk: Any, row: Any = row) -> Any:
                return self.input_place(stage, row, down * t.const(tiling.voxels) + voxel, chunk)

            def right(column: Any, chunk: Any, row: Any = row) -> Any:
                place = across * t.const(tiling.lanes) + column
                return self.weight_place(stage, row, place, chunk)

            self.sums.multiply(thread, self.operands, (self.inputs, left), (self.weights, right))

    def _add_parts(self) -> None:
        """The sums of the warps that share a tile, one part after another, in the first."""
        t, form = self.threads, self.form
        if form.parts == 1:
            return
        handed = t.shared(form.parts_shape, "float32")
        _, registers, threads = form.parts_shape
        sums = self.sums.registers
        with t.each_thread() as thread, t.scope("hand"):
            part, own = divide(thread, threads)
            with T.If(part > t.const(0)), T.Then():
                with T.unroll(t.const(0), t.const(registers)) as r:
                    value = sums.buffer[sums.at(thread, *[t.const(0)] * 3) + r]
                    handed.store(value, part - t.const(1), r, own)
        t.barrier()
        with t.each_thread() as thread, t.scope("add"):
            with T.If(thread < t.const(threads)), T.Then():
                with T.unroll(t.const(0), t.const(registers)) as r:
                    with T.unroll(t.const(0), t.const(form.parts - 1)) as part:
                        at = sums.at(thread, *[t.const(0)] * 3) + r
                        total = sums.buffer[at] + handed.load(part, r, thread)
                        T.buffer_store(sums.buffer, total, [at])

    def _column(self, thread: Any, j: Any) -> Any:
        """The output column of a thread's column ``j``."""
        t, tiling = self.threads, self.tiling
        _, _, across, lane = self._warp(thread)
        base = self.column_tile * t.const(tiling.block_channels)
        return base + across * t.const(tiling.lanes) + self.sums.column(lane, j)

    def finish(self) -> None:
        """Every thread its own sums, the first part alone."""
        t, tiling, form = self.threads, self.tiling, self.form
        vector = 16 // np.dtype(t.y.dtype).itemsize

        def row(thread: Any, i: Any) -> Any:
            _, down, _, lane = self._warp(thread)
            base = self.row_tile * t.const(tiling.block_voxels)
            return base + down * t.const(tiling.voxels) + self.sums.row(lane, i)

        def column(thread: Any, j: Any) -> Any:
            return self._column(thread, j * t.const(vector))

        self._add_parts()
        with t.each_thread() as thread:
            own = thread < t.const(form.parts_shape[2])
            with t.when(own if form.parts > 1 else None), t.scope("store"):
                store_tile(
                    t, self.plan, self.phases, self.n, self.sums, thread,
                    (row, column), vector, run=1,
                )  # fmt: skip
