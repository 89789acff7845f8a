"""The definition on a GPU: each thread gathers the taps of a few channels of one output voxel.

Right for every legal config, for kernels with NaN and infinities in them, and for glu, whose two
halves one thread computes. Consecutive threads write consecutive memory: channels where they are
last, voxels of a row where they are first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish, lanes
from tvmconv.compute.activation import sigmoid
from tvmconv.compute.cuda import Kernel, mixing
from tvmconv.compute.cuda.threads import Taps, Threads, split
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.element import narrow, storage, widen
from tvmconv.compute.elementary import Formula
from tvmconv.compute.lanes import Group, groups, packed_size
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["CudaDefinition"]


@dataclass(frozen=True)
class CudaDefinition:
    """The definition of one workload under one tiling."""

    work: Workload
    tiling: CudaTiling

    @property
    def group(self) -> Group:
        """All channels side by side, rounded up to whole lanes."""
        vectors = -(-self.work.plan.filters // self.tiling.lanes)
        found = groups(self.work, self.tiling.lanes, vectors)
        assert len(found) == 1
        return found[0]

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.work.plan.kernel_shape, self.group)

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        """Bytes of the packed weights with the bias, where the bias begins, bytes of an element."""
        element = np.dtype(self.work.accumulate_dtype).itemsize
        size = packed_size(self.work, [self.group])
        return (size + self.group.lanes) * element, size * element, element

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.work, [self.group])

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """The same in NumPy."""
        return lanes.pack(self.work, self.work, [self.group], kernel, bias).tobytes()

    def kernels(self) -> tuple[Kernel, ...]:
        """One kernel, and one more for an activation that mixes voxels or channels."""
        if self.work.empty:
            return ()
        total = self._elements // (1 if self._glu else self.tiling.lanes)
        grid = (-(-total // self.tiling.threads), 1, 1)
        arguments = ("input", "weights", "bias", "output", "batch")
        kernel = Kernel("conv", arguments, grid, True, self.tiling.threads, self._emit)
        if self._glu or not self.work.mixed_axes:
            return (kernel,)
        return (kernel, mixing.kernel(self.work))

    @property
    def _glu(self) -> bool:
        return self.work.activation.name == "glu"

    @property
    def _shape(self) -> tuple[int, int, int, int]:
        """Output depth, height, width and (padded) channels."""
        shape = self.work.output_shape[1:]
        *places, channels = (*shape[1:], shape[0]) if self.work.plan.channels_first else shape
        padded = -(-channels // self.tiling.lanes) * self.tiling.lanes
        return (places[0], places[1], places[2], padded)

    @property
    def _elements(self) -> int:
        return math.prod(self._shape)

    @property
    def _inputs_together(self) -> int:
        """Input channels in one load, where they lie side by side."""
        most = 16 // np.dtype(self.work.accumulate_dtype).itemsize
        plan = self.work.plan
        return 1 if plan.channels_first or plan.in_channels % most else most

    def _emit(self, symbol: str, serial: bool) -> Any:
        (kernel, *_) = self.kernels()
        size = packed_size(self.work, [self.group])
        dtype = self.work.accumulate_dtype
        threads = Threads(
            self.work, dtype, size, self.group.lanes, kernel.grid, kernel.threads, True, serial,
            storage(self.work.input_dtype),
        )  # fmt: skip
        return threads.function(symbol, kernel.arguments, lambda: self._block(threads))

    def _block(self, threads: Threads) -> None:
        depth, height, width, channels = self._shape
        vectors = channels // self.tiling.lanes
        n, block = threads.sample()
        with threads.each_thread() as thread:
            number = block * threads.const(self.tiling.threads) + thread
            with T.If(number < threads.const(depth * height * width * vectors)), T.Then():
                with threads.scope("voxel"):
                    sizes = (depth, height, width)
                    if self.work.plan.channels_first:
                        vector, *place = split(number, (vectors, *sizes))
                    else:
                        *place, vector = split(number, (*sizes, vectors))
                    od, oh, ow = map(threads.named, place)
                    # The factor stays visible: it is what makes a load of weights one load.
                    first = threads.named(vector) * threads.const(self.tiling.lanes)
                    self._voxel(threads, threads.named(n), (od, oh, ow), first)

    def _voxel(self, threads: Threads, n: Any, place: tuple[Any, Any, Any], first: Any) -> None:
        work = self.work
        if self._glu:
            self._gated(threads, n, place, first)
            return
        sums = self._sums(threads, n, place, first)
        last = finish.result(work, (self.tiling.lanes,))
        with T.unroll(threads.const(0), threads.const(self.tiling.lanes)) as v:
            channel = first + v
            partial = work.plan.filters % self.tiling.lanes
            with threads.when(channel < threads.bound(work.plan.filters) if partial else None):
                value = last.at(sums[v], v)
                T.buffer_store(threads.y, value, [threads.output_at(n, place, channel)])

    def _gated(self, threads: Threads, n: Any, place: tuple[Any, Any, Any], first: Any) -> None:
        """glu: the sum here times the sigmoid of the one half the axis away."""
        work = self.work
        (axis,) = work.mixed_axes
        half = threads.const(work.output_shape[axis])
        d, h, w = place
        over_channels = axis == (1 if work.plan.channels_first else 4)
        other = (place, first + half) if over_channels else ((d, h, w + half), first)
        one = self._sums(threads, n, place, first)
        gate = self._sums(threads, n, *other)
        dtype = work.accumulate_dtype
        opened = Formula(sigmoid, dtype, (1,))
        rounded = Formula(lambda x: narrow(x, work.output_dtype), dtype, (1,))
        zero = threads.const(0)
        value = rounded.at(one[zero] * opened.at(gate[zero], zero), zero)
        T.buffer_store(threads.y, value, [threads.output_at(n, place, first)])

    def _sums(self, threads: Threads, n: Any, place: tuple[Any, Any, Any], first: Any) -> Any:
        """Emit the sums of ``lanes`` channels from ``first`` on; the buffer that holds them."""
        work, plan, lanes = self.work, self.work.plan, self.tiling.lanes
        dtype = work.accumulate_dtype
        size = threads.const(lanes)
        zero = threads.const(0)
        sums = T.sblock_alloc_buffer((size,), dtype, scope="local")
        weight = T.sblock_alloc_buffer((size,), dtype, scope="local")
        together = self._inputs_together
        inputs = T.sblock_alloc_buffer(
            (threads.const(together),), storage(work.input_dtype), scope="local"
        )
        taps = [
            Taps.of(axis, out).named(threads.named)
            for axis, out in zip(plan.axes, place, strict=True)
        ]
        width = plan.axes[2]
        with T.vectorized(zero, size) as v:
            T.buffer_store(sums, threads.bias[first + v], [v])
        before = _taps_before(width, taps[2].residue)
        with T.serial(zero, taps[0].count) as a, T.serial(zero, taps[1].count) as b:
            with T.serial(zero, taps[2].count) as t:
                kd, kh = taps[0].kernel_index(a), taps[1].kernel_index(b)
                kw = before + taps[2].first + t
                tap = (kd * threads.const(plan.axes[1].kernel) + kh) * threads.const(width.kernel)
                row = (tap + kw) * threads.const(plan.in_channels)
                inside = [tap.input_index(i) for tap, i in zip(taps, (a, b, t), strict=True)]
                with T.serial(zero, threads.const(plan.in_channels // together)) as c:
                    start = c * threads.const(together)
                    with T.vectorized(zero, threads.const(together)) as u:
                        at = threads.input_at(n, inside[0], inside[1], inside[2], start + u)
                        T.buffer_store(inputs, threads.x[at], [u])
                    with T.unroll(zero, threads.const(together)) as u:
                        at = (row + start + u) * threads.const(self.group.lanes) + first
                        with T.vectorized(zero, size) as v:
                            T.buffer_store(weight, threads.weights[at + v], [v])
                        x = widen(inputs[u], work.input_dtype, dtype)
                        with T.unroll(zero, size) as v:
                            T.buffer_store(sums, sums[v] + x * weight[v], [v])
        return sums


def _taps_before(axis: Axis, residue: Any) -> Any:
    """Taps along the width of all residues below ``residue``: the packed order is by residue."""
    full, rest = divmod(axis.kernel, axis.stride)

    def const(value: int) -> Any:
        return tirx.IntImm(str(residue.ty), value)

    return residue * const(full) + tirx.min(residue, const(rest))
