"""The phase form on tensor cores: float16 or bfloat16 products, float32 sums.

As `tvmconv.compute.cuda.gemm`, with slices kept as they are in shared memory and multiplied by
warps in tiles of 16 x 16. Tiles of sums leave through shared memory, since which thread holds which
sum is the device's secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish, lanes
from tvmconv.compute.cuda.fragments import SIDE, WARP, Fragments
from tvmconv.compute.cuda.phase_form import Block, PhaseForm
from tvmconv.compute.cuda.phases import Place
from tvmconv.compute.cuda.slices import Slices
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.element import storage
from tvmconv.compute.elementary import Formula
from tvmconv.policies import numpy_dtype

__all__ = ["CudaWmma"]

_VECTOR = 8
"""Half-width numbers in 16 bytes."""
_PAD = 8
"""What a row in shared memory is longer by, so that rows begin in different banks."""
_STAGE = SIDE + 4
"""The same for a tile of sums on its way out."""


@dataclass(frozen=True)
class CudaWmma(PhaseForm):
    """The phase form of one half-width workload under one tiling.

    ``tiling.voxels`` and ``tiling.lanes`` are the rows and columns that a warp computes.
    """

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.work.input_dtype, self.folded.plan.kernel_shape, self.group)

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        """Bytes of the packed weights with the bias, where the bias begins, bytes of an element."""
        size = self.packed_size
        return 2 * size + 4 * self.group.lanes, 2 * size, 2

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.folded, [self.group], narrowed=True)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """The same in NumPy."""
        packed = lanes.pack(self.work, self.folded, [self.group], kernel, bias)
        size = self.packed_size
        with np.errstate(over="ignore"):
            narrow = packed[:size].astype(numpy_dtype(self.work.input_dtype))
        return narrow.tobytes() + packed[size:].tobytes()

    @property
    def input_shape(self) -> tuple[int, int]:
        """Rows of a slice of inputs in shared memory, and their length."""
        tiling = self.tiling
        if self.folded.plan.channels_first:
            return tiling.depth, tiling.block_voxels + _PAD
        return tiling.block_voxels, tiling.depth + _PAD

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        tiling = self.tiling
        rows, length = self.input_shape
        weights = tiling.depth * (tiling.block_channels + _PAD)
        sums = tiling.threads // WARP * SIDE * _STAGE
        return tiling.stages * 2 * (rows * length + weights) + 4 * sums

    def dtypes(self, serial: bool) -> tuple[str, str]:
        """Of the weights and the input. On a CPU bfloat16 is 16 bits; a fragment must know it."""
        dtype = storage(self.work.input_dtype) if serial else self.work.input_dtype
        return dtype, dtype

    def block(self, threads: Threads) -> Block:
        """What a block does."""
        return _Block(self, threads)


class _Block(Slices):
    """Slices in half width, sums in the fragments of warps."""

    form: CudaWmma

    def __init__(self, form: CudaWmma, threads: Threads) -> None:
        super().__init__(form, threads, threads.input_dtype, _VECTOR)
        self.form = form
        self.warps_across = form.tiling.block_channels // form.tiling.lanes

    def allocate(self) -> None:
        """Emit the slices in shared memory and the sums in fragments."""
        t, tiling = self.threads, self.tiling
        self.inputs = t.shared((tiling.stages, *self.form.input_shape), self.dtype)
        self.weights = t.shared(
            (tiling.stages, tiling.depth, tiling.block_channels + _PAD), self.dtype
        )
        warps = tiling.threads // WARP
        self.leaving = t.shared((warps, SIDE, _STAGE), "float32")
        self.sums = Fragments.of(
            t,
            tiling.voxels // SIDE,
            tiling.lanes // SIDE,
            self.work.input_dtype,
            left_by_columns=not self.along_channels,
        )

    def start(self, thread: Any) -> None:
        """The sums = 0: the bias is added on the way out."""
        self.sums.clear(thread)

    def put_inputs(self, thread: Any, stage: Any, inputs: Any) -> None:
        """As they lie: channels side by side where they are last, else voxels."""
        t = self.threads
        with T.unroll(t.const(0), t.const(self.loads)) as i:
            row, channel = self.load_place(thread, i)
            with t.when(self.is_load(thread, i) if self.few_inputs else None):
                with T.vectorized(t.const(0), t.const(self.load_vector)) as v:
                    place = (row, channel + v) if self.along_channels else (channel, row)
                    value = inputs[i * t.const(self.load_vector) + v]
                    self.inputs.store(value, stage, *place)

    def put_weights(self, stage: Any, channel: Any, column: Any, vector: Any) -> None:
        """As they lie."""
        t = self.threads
        with T.vectorized(t.const(0), t.const(self.vector)) as v:
            self.weights.store(vector(v), stage, channel, column + v)

    def multiply(self, thread: Any, stage: Any) -> None:
        """Each warp its tiles, 16 channels at a time."""
        t, tiling = self.threads, self.tiling
        down, across = self._warp(thread)
        stride = self.form.input_shape[1]
        with T.unroll(t.const(0), t.const(tiling.depth // SIDE)) as k:
            channel = k * t.const(SIDE)

            def left(i: Any, channel: Any = channel) -> Any:
                row = down * t.const(tiling.voxels) + i * t.const(SIDE)
                place = (row, channel) if self.along_channels else (channel, row)
                return self.inputs.at(stage, *place)

            def right(j: Any, channel: Any = channel) -> Any:
                column = across * t.const(tiling.lanes) + j * t.const(SIDE)
                return self.weights.at(stage, channel, column)

            self.sums.multiply(
                thread,
                (self.inputs, left),
                (self.weights, right),
                (stride, tiling.block_channels + _PAD),
            )

    def finish(self) -> None:
        """Tile by tile through shared memory; each thread stores half a row of a tile."""
        t, tiling = self.threads, self.tiling
        down, across = tiling.voxels // SIDE, tiling.lanes // SIDE
        with T.unroll(t.const(0), t.const(down)) as i, T.unroll(t.const(0), t.const(across)) as j:
            with t.each_thread() as thread:
                warp, _ = divide(thread, WARP)
                at = self.leaving.at(warp, t.const(0), t.const(0))
                self.sums.store(thread, i * t.const(across) + j, self.leaving, at, _STAGE)
            t.barrier()
            with t.each_thread() as thread, t.scope("store"):
                self._store_row(thread, i, j)
            t.barrier()

    def _store_row(self, thread: Any, i: Any, j: Any) -> None:
        t, tiling, plan = self.threads, self.tiling, self.plan
        warp, lane = divide(thread, WARP)
        row, half = divide(lane, 2)
        down, across = self._warp(thread)
        column = across * t.const(tiling.lanes) + j * t.const(SIDE) + half * t.const(_VECTOR)
        column = self.column_tile * t.const(tiling.block_channels) + column
        voxel = down * t.const(tiling.voxels) + i * t.const(SIDE) + row
        flat = self.row_tile * t.const(tiling.block_voxels) + voxel
        place = Place.of(plan, self.phases, flat)
        work = self.work
        done = T.sblock_alloc_buffer((t.const(_VECTOR),), storage(work.output_dtype), scope="local")
        last: Formula = finish.result(work, (1,))
        together = self.along_channels and plan.filters % _VECTOR == 0
        together = together and work.output_dtype == work.input_dtype
        with t.when(place.exists), t.when(column < t.const(plan.filters)), t.scope("voxel"):
            where = tuple(
                t.named(phase.output(p))
                for phase, p in zip(self.phases, place.numbers, strict=True)
            )
            # A long activation is one loop of single stores: written out eight times for each
            # tile it would be most of the binary.
            long = finish.is_long(work)
            together = together and not long
            with (T.serial if long else T.unroll)(t.const(0), t.const(_VECTOR)) as v:
                value = self.leaving.load(warp, row, half * t.const(_VECTOR) + v)
                result = last.at(value + t.bias[column + v], t.const(0))
                if together:
                    T.buffer_store(done, result, [v])
                else:
                    with t.when(column + v < t.const(plan.filters)):
                        T.buffer_store(t.y, result, [t.output_at(self.n, where, column + v)])
            if together:
                with T.vectorized(t.const(0), t.const(_VECTOR)) as v:
                    T.buffer_store(t.y, done[v], [t.output_at(self.n, where, column + v)])

    def _warp(self, thread: Any) -> tuple[Any, Any]:
        """The warp's row and column among the warps of the block."""
        warp, _ = divide(thread, WARP)
        return divide(warp, self.warps_across)
