"""The phase form on a GPU: each output phase is a matrix product, read from where its inputs lie.

Rows are the voxels of a phase, columns the filters, and the sum runs over the phase's taps and the
input channels. A block of threads computes a tile of rows x columns: a slice of inputs and weights
is brought to shared memory (inputs that do not exist as zeros), multiplied from registers there,
while the next slice is on its way. All phases are one launch.

Where kernel = stride along the width the folded layer is computed: one tap, more columns, and
output rows without gaps.

A block can have more threads than its tile needs, which share its sum: see `Parts`. Several blocks
can share one, too, where the batch is fixed: see `tvmconv.compute.cuda.shared_sums`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda import Kernel, registers, shared_sums
from tvmconv.compute.cuda.parts import Parts
from tvmconv.compute.cuda.phase_form import Block, PhaseForm
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.slices import Slices
from tvmconv.compute.cuda.store import store_tile
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.element import widen
from tvmconv.compute.workload import Workload

__all__ = ["CudaGemm"]


@dataclass(frozen=True)
class CudaGemm(PhaseForm):
    """The phase form of one workload under one tiling."""

    @property
    def tile_threads(self) -> int:
        """Threads that compute a tile: those of a part."""
        tiling = self.tiling
        return tiling.block_voxels * tiling.block_channels // (tiling.voxels * tiling.lanes)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        tiling = self.tiling
        rows = tiling.block_voxels + self.vector + tiling.block_channels
        return tiling.stages * tiling.depth * rows * self.element

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of a sample; those that share a sum are side by side along z."""
        x, y, _ = super().grid
        return x, y, self.tiling.sum_blocks

    @property
    def stored(self) -> Workload:
        """The workload whose output the kernel writes: of plain sums, where blocks share them."""
        return shared_sums.of(self.folded) if self.tiling.sum_blocks > 1 else self.folded

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels of the form, and one that adds the parts of sums that blocks share."""
        found, shares = super().kernels(), self.tiling.sum_blocks
        if not found or shares == 1:
            return found
        assert self.work.plan.batch > 0, "an open batch has no workspace"
        parts = dataclasses.replace(
            found[0],
            arguments=("input", "weights", "workspace", "batch"),
            workspace_bytes=shared_sums.workspace_bytes(self.folded, shares),
        )
        return parts, shared_sums.kernel(self.folded, self.group.lanes, shares), *found[1:]

    def block(self, threads: Threads) -> Block:
        """What a block does."""
        if self.tiling.sum_blocks > 1:
            threads.y = threads.workspace
        return _Block(self, threads)


class _Block(Slices):
    """Slices in the accumulation dtype, voxels side by side; sums in registers."""

    def __init__(self, form: CudaGemm, threads: Threads) -> None:
        super().__init__(form, threads, form.work.accumulate_dtype, form.vector)
        self.parts = Parts(threads, form.tile_threads)

    def allocate(self) -> None:
        """Emit the slices in shared memory and the sums in registers."""
        t, tiling = self.threads, self.tiling
        rows = tiling.block_voxels + self.vector
        self.inputs = t.shared((tiling.stages, tiling.depth, rows), self.dtype)
        self.weights = t.shared((tiling.stages, tiling.depth, tiling.block_channels), self.dtype)
        self.sums = t.registers((tiling.voxels, tiling.lanes), self.dtype)

    def start(self, thread: Any) -> None:
        """The sums = the bias; 0 but in the first part, and where another kernel adds it."""
        t, tiling = self.threads, self.tiling
        zero = t.const(0)
        columns = tiling.lanes // self.vector
        with T.unroll(zero, t.const(tiling.voxels)) as i, T.unroll(zero, t.const(columns)) as j:

            def set_all(value: Callable[[Any, Any], Any], i: Any = i, j: Any = j) -> None:
                with T.vectorized(zero, t.const(self.vector)) as v:
                    at = j * t.const(self.vector) + v
                    self.sums.store(value(self._column(thread, j), v), thread, i, at)

            nothing = partial(set_all, lambda _column, _v: tirx.const(0, self.dtype))
            if tiling.sum_blocks > 1:
                nothing()
            else:
                self.parts.choose(thread, partial(set_all, self._bias), nothing)

    def _bias(self, column: Any, v: Any) -> Any:
        """The bias of a column."""
        t, lanes = self.threads, self.form.group.lanes
        if lanes % self.tiling.block_channels:
            # Columns past the last have a zero as long as they are packed, and no store.
            column = tirx.min(column, t.const(lanes - self.vector))
        return t.bias[column + v]

    def put_inputs(self, thread: Any, stage: Any, inputs: Any) -> None:
        """Widened, voxels side by side."""
        t = self.threads
        with T.unroll(t.const(0), t.const(self.loads)) as i:
            row, channel = self.load_place(thread, i)
            with t.when(self.is_load(thread, i) if self.few_inputs else None):
                with T.unroll(t.const(0), t.const(self.load_vector)) as v:
                    stored = inputs[i * t.const(self.load_vector) + v]
                    value = widen(stored, self.work.input_dtype, self.dtype)
                    self.inputs.store(value, stage, channel + v, row)

    def put_weights(self, stage: Any, channel: Any, column: Any, vector: Any) -> None:
        """As they lie."""
        t = self.threads
        with T.vectorized(t.const(0), t.const(self.vector)) as v:
            self.weights.store(vector(v), stage, channel, column + v)

    def finish(self) -> None:
        """The first part's threads: their own sums, with those of the other parts."""
        t, n = self.threads, self.n
        self.parts.add(self.sums, self.inputs)
        if self.tiling.sum_blocks > 1:
            n = t.named(shared_sums.place(t, t.block[2], n))
        with t.each_thread() as thread, t.scope("store"):
            with t.when(self.parts.is_first(thread)):
                store_tile(
                    t, self.plan, self.phases, n, self.sums, thread,
                    (self._row, self._column), self.vector,
                )  # fmt: skip

    def _row(self, thread: Any, i: Any) -> Any:
        """The first of ``vector`` voxels of group ``i`` of a thread, in the phase."""
        t, tiling = self.threads, self.tiling
        y, _ = divide(self.parts.of(thread)[1], tiling.block_channels // tiling.lanes)
        step = tiling.block_voxels * self.vector // tiling.voxels
        base = self.row_tile * t.const(tiling.block_voxels)
        return base + i * t.const(step) + y * t.const(self.vector)

    def _column(self, thread: Any, j: Any) -> Any:
        """The first of ``vector`` columns of group ``j`` of a thread."""
        t, tiling = self.threads, self.tiling
        _, x = divide(self.parts.of(thread)[1], tiling.block_channels // tiling.lanes)
        step = tiling.block_channels * self.vector // tiling.lanes
        base = self.column_tile * t.const(tiling.block_channels)
        return base + j * t.const(step) + x * t.const(self.vector)

    def multiply(self, thread: Any, stage: Any) -> None:
        """The part's slice in shared memory, from registers: voxels x lanes products a channel."""
        t, tiling = self.threads, self.tiling
        first = self.parts.channel(thread, tiling.depth)
        registers.multiply(
            t,
            self.vector,
            Registers.local(t, (tiling.voxels,), self.dtype),
            Registers.local(t, (tiling.lanes,), self.dtype),
            self.sums,
            thread,
            tiling.depth // self.parts.number,
            (tiling.block_channels // tiling.lanes, tiling.block_voxels, tiling.block_channels),
            (
                lambda k, m: self.inputs.load(stage, first + k, m),
                lambda k, n: self.weights.load(stage, first + k, n),
            ),
            self.parts.of(thread)[1],
        )
