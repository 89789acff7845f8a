"""The phase form on a GPU: each output phase is a matrix product, read from where its inputs lie.

Rows are the voxels of a phase, columns the filters, and the sum runs over the phase's taps and the
input channels. A block of threads computes a tile of rows x columns: a slice of inputs and weights
is brought to shared memory (inputs that do not exist as zeros), multiplied from registers there,
while the next slice is on its way. All phases are one launch.

Where kernel = stride along the width the folded layer is computed: one tap, more columns, and
output rows without gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import lanes
from tvmconv.compute.cuda import Kernel, mixing, registers
from tvmconv.compute.cuda.phases import AxisPhase, Place, Room, phase_of
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.store import store_tile
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.element import storage, widen
from tvmconv.compute.lanes import Group, packed_size
from tvmconv.compute.workload import Workload

__all__ = ["CudaGemm"]

_COLUMNS = 16
"""Packed weights have a multiple of so many columns."""
_NOWHERE = -(2**24)
"""An input position so far outside that no tap of it exists."""


@dataclass(frozen=True)
class CudaGemm:
    """The phase form of one workload under one tiling."""

    work: Workload
    tiling: CudaTiling

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes."""
        return self.work.folded()

    @property
    def vector(self) -> int:
        """Numbers of the accumulation dtype in 16 bytes."""
        return 16 // np.dtype(self.work.accumulate_dtype).itemsize

    @property
    def group(self) -> Group:
        """All columns side by side, in whole vectors."""
        filters = self.folded.plan.filters
        return Group(0, filters, 1, -(-filters // _COLUMNS) * _COLUMNS, 0, 0)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.folded.plan.kernel_shape, self.group)

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        """Bytes of the packed weights with the bias, where the bias begins, bytes of an element."""
        element = np.dtype(self.work.accumulate_dtype).itemsize
        size = packed_size(self.folded, [self.group])
        return (size + self.group.lanes) * element, size * element, element

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.folded, [self.group])

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """The same in NumPy."""
        return lanes.pack(self.work, self.folded, [self.group], kernel, bias).tobytes()

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        tiling = self.tiling
        rows = tiling.block_voxels + self.vector + tiling.block_channels
        return tiling.stages * tiling.depth * rows * np.dtype(self.work.accumulate_dtype).itemsize

    def kernels(self) -> tuple[Kernel, ...]:
        """One kernel, and one more for an activation that mixes voxels or channels."""
        if self.work.empty:
            return ()
        room = Room(self.folded.plan)
        rows = -(-room.voxels // self.tiling.block_voxels)
        columns = -(-self.folded.plan.filters // self.tiling.block_channels)
        grid = (rows * room.phases, columns, 1)
        arguments = ("input", "weights", "bias", "output", "batch")
        kernel = Kernel(
            "conv",
            arguments,
            grid,
            True,
            self.tiling.threads,
            self._emit,
            self.shared_bytes,
            self.tiling.resident,
        )
        return (kernel, mixing.kernel(self.work)) if self.work.mixed_axes else (kernel,)

    def _emit(self, symbol: str, serial: bool) -> Any:
        kernel = self.kernels()[0]
        threads = Threads(
            self.folded,
            self.work.accumulate_dtype,
            packed_size(self.folded, [self.group]),
            self.group.lanes,
            kernel.grid,
            kernel.threads,
            True,
            serial,
        )
        body = lambda: _Block(self, threads).emit()  # noqa: E731
        return threads.function(symbol, kernel.arguments, body)


class _Block:
    """Emits what one block of threads does."""

    def __init__(self, form: CudaGemm, threads: Threads) -> None:
        self.form = form
        self.tiling = form.tiling
        self.threads = threads
        self.work = form.folded
        self.plan = form.folded.plan
        self.dtype = form.work.accumulate_dtype
        self.vector = form.vector
        tiling = self.tiling
        # Voxels side by side in memory where channels are first, else channels.
        self.along_channels = not self.plan.channels_first
        wide = self.along_channels and self.plan.in_channels % self.vector == 0
        self.load_vector = self.vector if wide else 1
        loads = tiling.block_voxels * tiling.depth // (tiling.threads * self.load_vector)
        self.loads = max(1, loads)

    def emit(self) -> None:
        """The whole block."""
        t, tiling = self.threads, self.tiling
        n, number = t.sample()
        rows, phase = divide(number, Room(self.plan).phases)
        with T.sblock("tile"):
            T.reads()
            T.writes()
            self.n = t.named(n)
            self.row_tile, self.column_tile = t.named(rows), t.block[1]
            self.phases: list[AxisPhase] = phase_of(self.plan, phase, t.named)
            slices = -(-self.plan.in_channels // tiling.depth)
            taps = self.phases[0].taps * self.phases[1].taps * self.phases[2].taps
            self.steps = t.named(taps * t.const(slices))
            self.slices = slices
            self.inputs = t.shared(
                (tiling.stages, tiling.depth, tiling.block_voxels + self.vector), self.dtype
            )
            self.weights = t.shared(
                (tiling.stages, tiling.depth, tiling.block_channels), self.dtype
            )
            self.sums = t.registers((tiling.voxels, tiling.lanes), self.dtype)
            self.place = t.registers((self.loads, 4), t.index)
            # The slice that is loaded next: tap along each axis, slice of channels.
            self.next = t.registers((4,), t.index)
            with t.each_thread() as thread:
                self._begin(thread)
                with T.If(self.steps > t.const(0)), T.Then(), t.scope("first"):
                    self._store(thread, t.const(0), self._load(thread))
            t.barrier()
            with T.serial(t.const(0), self.steps) as step:
                with t.each_thread() as thread, t.scope("step"):
                    self._advance(thread)
                    more = step + t.const(1) < self.steps
                    stage = divide(step, 2)[1]
                    with T.If(more), T.Then():
                        staged = self._load(thread)
                    self._multiply(thread, stage)
                    with T.If(more), T.Then():
                        self._store(thread, t.const(1) - stage, staged)
                t.barrier()
            with t.each_thread() as thread, t.scope("store"):
                store_tile(
                    t, self.plan, self.phases, self.n, self.sums, thread,
                    (self._row, self._column), self.vector,
                )  # fmt: skip

    def _begin(self, thread: Any) -> None:
        """The thread's places in the input, the first slice, the sums = the bias."""
        t, tiling = self.threads, self.tiling
        zero = t.const(0)
        with T.unroll(zero, t.const(self.loads)) as i:
            row, channel = self._load_place(thread, i)
            flat = self.row_tile * t.const(tiling.block_voxels) + row
            place = Place.of(self.plan, self.phases, flat)
            position = [p.first + j for j, p in zip(place.numbers, self.phases, strict=True)]
            for axis, q in enumerate(position):
                q = tirx.Select(place.exists, q, t.const(_NOWHERE))  # noqa: PLW2901
                self.place.store(q, thread, i, t.const(axis))
            # In vectors: that the factor stays visible makes a load of a vector one load.
            flat = t.flat_input(position, channel)
            self.place.store(divide(flat, self.load_vector)[0], thread, i, t.const(3))
        for number in range(4):
            self.next.store(zero, thread, t.const(number))
        columns = tiling.lanes // self.vector
        with T.unroll(zero, t.const(tiling.voxels)) as i, T.unroll(zero, t.const(columns)) as j:
            with T.vectorized(zero, t.const(self.vector)) as v:
                column = self._column(thread, j) + v
                # Columns past the last have a zero as long as they are packed, and no store.
                last = t.const(self.form.group.lanes - self.vector)
                if self.form.group.lanes % tiling.block_channels:
                    column = tirx.min(self._column(thread, j), last) + v
                value = t.bias[column]
                self.sums.store(value, thread, i, j * t.const(self.vector) + v)

    def _load_place(self, thread: Any, i: Any) -> tuple[Any, Any]:
        """Row of the tile and first channel of the slice of load ``i`` of a thread."""
        t, tiling = self.threads, self.tiling
        number = i * t.const(tiling.threads) + thread
        if self.along_channels:
            row, channel = divide(number, tiling.depth // self.load_vector)
            return row, channel * t.const(self.load_vector)
        channel, row = divide(number, tiling.block_voxels)
        return row, channel

    def _load(self, thread: Any) -> tuple[Any, Any]:
        """Read the next slice into registers: the inputs, as stored, and the weights."""
        t, tiling = self.threads, self.tiling
        kept = storage(self.work.input_dtype)
        inputs = T.sblock_alloc_buffer(
            (t.const(self.loads * self.load_vector),), kept, scope="local"
        )
        tap = [self.next.load(thread, t.const(axis)) for axis in range(3)]
        first = t.named(self.next.load(thread, t.const(3)) * t.const(tiling.depth))
        back = [p * t.const(axis.dilation) for p, axis in zip(tap, self.plan.axes, strict=True)]
        moved = t.flat_input(back, t.const(0)) - t.flat_input([t.const(0)] * 3, first)
        moved = t.named(tirx.truncdiv(moved, t.const(self.load_vector)))
        with T.unroll(t.const(0), t.const(self.loads)) as i:
            _, channel = self._load_place(thread, i)
            position = [
                self.place.load(thread, i, t.const(a)) - tap[a] * t.const(axis.dilation)
                for a, axis in enumerate(self.plan.axes)
            ]
            inside = [
                tirx.all(p >= t.const(0), p < t.const(axis.size))
                for p, axis in zip(position, self.plan.axes, strict=True)
            ]
            if self.plan.in_channels % tiling.depth:
                inside.append(first + channel < t.const(self.plan.in_channels))
            if tiling.block_voxels * tiling.depth < tiling.threads * self.load_vector:
                inside.append(self._load_number(thread, i))
            at = i * t.const(self.load_vector)
            with T.If(tirx.all(*inside)):
                with T.Then(), T.vectorized(t.const(0), t.const(self.load_vector)) as v:
                    vectors = self.place.load(thread, i, t.const(3)) - moved
                    index = vectors * t.const(self.load_vector) + v
                    T.buffer_store(inputs, t.x[t.in_sample(self.n, index)], [at + v])
                with T.Else(), T.vectorized(t.const(0), t.const(self.load_vector)) as v:
                    T.buffer_store(inputs, tirx.const(0, kept), [at + v])
        return inputs, self._load_weights(thread, tap, first)

    def _load_number(self, thread: Any, i: Any) -> Any:
        """Whether a load is one of the tile's: tiles may be smaller than the threads."""
        t, tiling = self.threads, self.tiling
        number = i * t.const(tiling.threads) + thread
        return number < t.const(tiling.block_voxels * tiling.depth // self.load_vector)

    @property
    def _weight_loads(self) -> int:
        tiling = self.tiling
        vectors = tiling.depth * tiling.block_channels // self.vector
        return -(-vectors // tiling.threads)

    def _weight_place(self, thread: Any, i: Any) -> tuple[Any, Any]:
        """Channel of the slice and first column of the tile of a load of weights."""
        t, tiling = self.threads, self.tiling
        number = i * t.const(tiling.threads) + thread
        channel, vector = divide(number, tiling.block_channels // self.vector)
        return channel, vector * t.const(self.vector)

    def _load_weights(self, thread: Any, tap: list[Any], first: Any) -> Any:
        t, tiling = self.threads, self.tiling
        size = self._weight_loads * self.vector
        weights = T.sblock_alloc_buffer((t.const(size),), self.dtype, scope="local")
        d, h, w = self.phases
        kernel = d.kernel_index(tap[0]) * t.const(self.plan.axes[1].kernel) + h.kernel_index(tap[1])
        kernel = kernel * t.const(self.plan.axes[2].kernel) + w.packed_index(tap[2])
        start = (kernel * t.const(self.plan.in_channels) + first) * t.const(self.form.group.lanes)
        start = start + self.column_tile * t.const(tiling.block_channels)
        start = t.named(divide(start, self.vector)[0]) * t.const(self.vector)
        with T.unroll(t.const(0), t.const(self._weight_loads)) as i:
            channel, column = self._weight_place(thread, i)
            needed = []
            if self.plan.in_channels % tiling.depth or self._weights_overhang:
                # Channels past the last meet inputs that are zero: their weights must be finite.
                needed.append(first + channel < t.const(self.plan.in_channels))
            if self.form.group.lanes % tiling.block_channels:
                whole = self.column_tile * t.const(tiling.block_channels) + column
                needed.append(whole < t.const(self.form.group.lanes))
            index = start + (channel * t.const(self.form.group.lanes) + column)
            at = i * t.const(self.vector)

            t.choose(
                needed,
                partial(self._copy, weights, at, lambda v, index: t.weights[index + v], index),
                partial(self._copy, weights, at, lambda _v, _: tirx.const(0, self.dtype), index),
            )
        return weights

    def _copy(self, to: Any, at: Any, value: Callable[[Any, Any], Any], index: Any) -> None:
        """A vector of values into registers."""
        t = self.threads
        with T.vectorized(t.const(0), t.const(self.vector)) as v:
            T.buffer_store(to, value(v, index), [at + v])

    @property
    def _weights_overhang(self) -> bool:
        """Whether some threads have no weights to load."""
        tiling = self.tiling
        vectors = tiling.depth * tiling.block_channels // self.vector
        return vectors % tiling.threads != 0

    def _store(self, thread: Any, stage: Any, staged: tuple[Any, Any]) -> None:
        """From registers to shared memory: inputs widened, voxels side by side."""
        t, tiling = self.threads, self.tiling
        inputs, weights = staged
        with T.unroll(t.const(0), t.const(self.loads)) as i:
            row, channel = self._load_place(thread, i)
            small = tiling.block_voxels * tiling.depth < tiling.threads * self.load_vector
            with t.when(self._load_number(thread, i) if small else None):
                with T.unroll(t.const(0), t.const(self.load_vector)) as v:
                    stored = inputs[i * t.const(self.load_vector) + v]
                    value = widen(stored, self.work.input_dtype, self.dtype)
                    self.inputs.store(value, stage, channel + v, row)
        with T.unroll(t.const(0), t.const(self._weight_loads)) as i:
            channel, column = self._weight_place(thread, i)
            with t.when(channel < t.const(tiling.depth) if self._weights_overhang else None):
                with T.vectorized(t.const(0), t.const(self.vector)) as v:
                    value = weights[i * t.const(self.vector) + v]
                    self.weights.store(value, stage, channel, column + v)

    def _advance(self, thread: Any) -> None:
        """The slice after this one: channels first, then the taps from the width on."""
        t = self.threads
        limits = [phase.taps for phase in self.phases]

        def carry(digit: int, limit: Any, then: Any) -> None:
            value = self.next.load(thread, t.const(digit)) + t.const(1)
            self.next.store(value, thread, t.const(digit))
            with T.If(self.next.load(thread, t.const(digit)) >= limit), T.Then():
                self.next.store(t.const(0), thread, t.const(digit))
                then()

        def tap(axis: int) -> None:
            if axis >= 0:
                carry(axis, limits[axis], lambda: tap(axis - 1))

        carry(3, t.const(self.slices), lambda: tap(2))

    def _row(self, thread: Any, i: Any) -> Any:
        """The first of ``vector`` voxels of group ``i`` of a thread, in the phase."""
        t, tiling = self.threads, self.tiling
        y, _ = divide(thread, tiling.block_channels // tiling.lanes)
        step = tiling.block_voxels * self.vector // tiling.voxels
        base = self.row_tile * t.const(tiling.block_voxels)
        return base + i * t.const(step) + y * t.const(self.vector)

    def _column(self, thread: Any, j: Any) -> Any:
        """The first of ``vector`` columns of group ``j`` of a thread."""
        t, tiling = self.threads, self.tiling
        _, x = divide(thread, tiling.block_channels // tiling.lanes)
        step = tiling.block_channels * self.vector // tiling.lanes
        base = self.column_tile * t.const(tiling.block_channels)
        return base + j * t.const(step) + x * t.const(self.vector)

    def _multiply(self, thread: Any, stage: Any) -> None:
        """The slice in shared memory, from registers: voxels x lanes products a channel."""
        t, tiling = self.threads, self.tiling
        registers.multiply(
            t,
            self.vector,
            Registers.local(t, (tiling.voxels,), self.dtype),
            Registers.local(t, (tiling.lanes,), self.dtype),
            self.sums,
            thread,
            tiling.depth,
            (tiling.block_channels // tiling.lanes, tiling.block_voxels, tiling.block_channels),
            (
                lambda k, m: self.inputs.load(stage, k, m),
                lambda k, n: self.weights.load(stage, k, n),
            ),
        )
