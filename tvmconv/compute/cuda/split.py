"""Few voxels and many channels on a GPU: the warps of a block share the sum over the channels.

A matrix product would have too few blocks here, each with a long sum. Instead a block computes a
few voxels of a phase for a few columns: each of its warps takes every so many channels, its threads
take neighbouring columns, and the warps' sums are added in shared memory, always in the same
order. Weights go from memory to registers once for all voxels of the block; an input is one load
for a whole warp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.cuda.fragments import WARP
from tvmconv.compute.cuda.phase_form import Block, PhaseForm
from tvmconv.compute.cuda.phases import Place, Room, phase_of
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.element import widen

__all__ = ["CudaSplit"]


@dataclass(frozen=True)
class CudaSplit(PhaseForm):
    """The phase form of one workload with a sum in parts.

    ``tiling.voxels`` are the voxels of a block, ``tiling.lanes`` the columns of a thread.
    """

    @property
    def warps(self) -> int:
        """Parts of the sum."""
        return self.tiling.threads // WARP

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.tiling.lanes * WARP

    @property
    def block_shape(self) -> tuple[int, int]:
        """Voxels and columns of a block."""
        return self.tiling.voxels, self.columns

    @property
    def together(self) -> int:
        """Input channels in one load."""
        plan = self.folded.plan
        return 1 if plan.channels_first else math.gcd(self.vector, plan.in_channels)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.warps * self.tiling.voxels * self.columns * self.element

    def block(self, threads: Threads) -> Block:
        """What a block does."""
        return _Block(self, threads)


class _Block:
    """Emits what one block of threads does."""

    def __init__(self, form: CudaSplit, threads: Threads) -> None:
        self.form = form
        self.threads = threads
        self.tiling = form.tiling
        self.work = form.folded
        self.plan = form.folded.plan
        self.dtype = form.work.accumulate_dtype

    def emit(self) -> None:
        """The whole block."""
        t, form, tiling = self.threads, self.form, self.tiling
        n, number = t.sample()
        rows, phase = divide(number, Room(self.plan).phases)
        with t.scope("tile"):
            self.n = t.named(n)
            self.row_tile, self.column_tile = t.named(rows), t.block[1]
            self.phases = phase_of(self.plan, phase, t.named)
            self.parts = t.shared((form.warps, tiling.voxels, form.columns), self.dtype)
            with t.each_thread() as thread, t.scope("sums"):
                self._add(thread)
            t.barrier()
            with t.each_thread() as thread, t.scope("store"):
                self._store(thread)

    def _place(self, voxel: Any) -> Place:
        """A voxel of the block's."""
        t = self.threads
        flat = self.row_tile * t.const(self.tiling.voxels) + voxel
        return Place.of(self.plan, self.phases, flat)

    def _add(self, thread: Any) -> None:
        """A warp's part of the sums, to shared memory."""
        t, tiling = self.threads, self.tiling
        zero, voxels, columns = t.const(0), t.const(tiling.voxels), t.const(tiling.lanes)
        warp, lane = map(t.named, divide(thread, WARP))
        sums = Registers.local(t, (tiling.voxels, tiling.lanes), self.dtype)
        where = Registers.local(t, (tiling.voxels,), t.index)
        with T.unroll(zero, voxels) as i, T.unroll(zero, columns) as j:
            sums.store(tirx.const(0, self.dtype), thread, i, j)
        taps = [phase.taps for phase in self.phases]
        with T.serial(zero, taps[0]) as a, T.serial(zero, taps[1]) as b:
            with T.serial(zero, taps[2]) as w, t.scope("tap"):
                self._reached((a, b, w), where, thread)
                # Where no voxel of the block has an input, its weights are not read.
                reached = [where.load(thread, t.const(i)) >= zero for i in range(tiling.voxels)]
                with T.If(tirx.any(*reached)), T.Then(), t.scope("products"):
                    self._products((a, b, w), where, sums, warp, lane)
        with T.unroll(zero, voxels) as i, T.vectorized(zero, columns) as j:
            self.parts.store(sums.load(thread, i, j), warp, i, lane * columns + j)

    def _reached(self, tap: tuple[Any, Any, Any], where: Registers, thread: Any) -> None:
        """The first channel of each voxel's input for a tap, in loads; -1 where there is none."""
        t = self.threads
        with T.unroll(t.const(0), t.const(self.tiling.voxels)) as i:
            place = self._place(i)
            position = [
                phase.first + j - k * t.const(axis.dilation)
                for phase, j, k, axis in zip(
                    self.phases, place.numbers, tap, self.plan.axes, strict=True
                )
            ]
            inside = [
                tirx.all(p >= t.const(0), p < t.const(axis.size))
                for p, axis in zip(position, self.plan.axes, strict=True)
            ]
            flat = t.flat_input(position, t.const(0))
            flat = tirx.truncdiv(flat, t.const(self.form.together))
            exists = tirx.all(place.exists, *inside)
            where.store(tirx.Select(exists, flat, t.const(-1)), thread, i)

    def _products(
        self, tap: tuple[Any, Any, Any], where: Registers, sums: Registers, warp: Any, lane: Any
    ) -> None:
        """All products of a tap that are the warp's: every so many channels."""
        t, form, tiling, plan = self.threads, self.form, self.tiling, self.plan
        zero, columns = t.const(0), t.const(tiling.lanes)
        together = t.const(form.together)
        d, h, w = self.phases
        kernel = d.kernel_index(tap[0]) * t.const(plan.axes[1].kernel) + h.kernel_index(tap[1])
        kernel = kernel * t.const(plan.axes[2].kernel) + w.packed_index(tap[2])
        row = t.named(kernel * t.const(plan.in_channels))
        # Columns past the last packed ones read others, and are not stored.
        last = t.const(form.group.lanes // tiling.lanes - 1)
        column = t.named(tirx.min(self.column_tile * t.const(WARP) + lane, last)) * columns
        stride = math.prod(axis.size for axis in plan.axes) if plan.channels_first else 1
        vectors = plan.in_channels // form.together
        inputs = Registers.local(t, (tiling.voxels, form.together), t.input_dtype)
        weights = Registers.local(t, (form.together, tiling.lanes), self.dtype)
        with T.serial(zero, t.const(-(-vectors // form.warps))) as i, t.scope("channels"):
            vector = i * t.const(form.warps) + warp
            with t.when(vector < t.const(vectors) if vectors % form.warps else None):
                channel = vector * together
                with T.unroll(zero, together) as u, T.vectorized(zero, columns) as j:
                    at = (row + channel + u) * t.const(form.group.lanes) + column + j
                    weights.store(t.weights[at], zero, u, j)
                with T.unroll(zero, t.const(tiling.voxels)) as v:
                    with T.If(where.load(zero, v) >= zero):
                        with T.Then(), T.vectorized(zero, together) as u:
                            flat = where.load(zero, v) * together + channel * t.const(stride)
                            value = t.x[t.in_sample(self.n, flat + u * t.const(stride))]
                            inputs.store(value, zero, v, u)
                        with T.Else(), T.vectorized(zero, together) as u:
                            inputs.store(tirx.const(0, t.input_dtype), zero, v, u)
                with T.unroll(zero, together) as u, T.unroll(zero, t.const(tiling.voxels)) as v:
                    x = widen(inputs.load(zero, v, u), self.work.input_dtype, self.dtype)
                    with T.unroll(zero, columns) as j:
                        product = x * weights.load(zero, u, j)
                        sums.store(sums.load(zero, v, j) + product, zero, v, j)

    def _store(self, thread: Any) -> None:
        """The parts of each sum, one after another, and what becomes of it."""
        t, form, tiling = self.threads, self.form, self.tiling
        zero = t.const(0)
        total = tiling.voxels * form.columns
        last = finish.result(self.work, (1,))
        with T.serial(zero, t.const(-(-total // tiling.threads))) as i, t.scope("voxel"):
            number = i * t.const(tiling.threads) + thread
            voxel, own = divide(number, form.columns)
            place = self._place(voxel)
            column = t.named(self.column_tile * t.const(form.columns) + own)
            inside = [place.exists, column < t.bound(self.plan.filters)]
            inside += [number < t.const(total)] if total % tiling.threads else []
            with T.If(tirx.all(*inside)), T.Then(), t.scope("output"):
                out = [
                    t.named(phase.output(j))
                    for phase, j in zip(self.phases, place.numbers, strict=True)
                ]
                value = Registers.local(t, (1,), self.dtype)
                value.store(t.bias[column], zero, zero)
                with T.unroll(zero, t.const(form.warps)) as part:
                    added = value.load(zero, zero) + self.parts.load(part, voxel, own)
                    value.store(added, zero, zero)
                result = last.at(value.load(zero, zero), zero)
                at = t.output_at(self.n, (out[0], out[1], out[2]), column)
                T.buffer_store(t.y, result, [at])
