"""The voxel form, for few filters: the lanes of a register are voxels along the width, not channels.

With one to a few filters a register of channels would be mostly padding. Here every weight is broadcast to a register of voxels, and
all phases and filters of the same input voxels are summed at once: each input register loaded serves many products, no
product is wasted, and nothing but the output is written (a matrix product with a column for each tap and filter would write
taps * filters numbers a voxel, and add them up again).

Input rows are packed as ``[in channel][voxel]``, a transpose where channels are last. A task tile walks down the depth with a ring of as
many planes as the kernel has depth taps, so a plane is packed once for it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import narrow, storage, widen
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import (
    Frame,
    Region,
    buffer,
    divide,
    first_position,
    i64,
    positions,
    prim_func,
)
from tvmconv.compute.shuffle import interleave, lanes, transpose
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.policies import numpy_dtype

__all__ = ["VoxelForm", "products"]


def products(work: Workload) -> int:
    """Products of one input channel and one position: multiply-adds in the innermost loops, unrolled."""
    total = work.plan.filters
    for axis in work.plan.axes:
        total *= axis.kernel
    return total


@dataclass(frozen=True)
class _Product:
    """One weight: its tap, and the sum it goes to."""

    tap: tuple[int, int, int]
    residue: tuple[int, int, int]
    filter: int

    def kernel_index(self, strides: tuple[int, ...]) -> tuple[int, ...]:
        """The entry of the kernel, without its in-channel."""
        taps = zip(self.tap, self.residue, strides, strict=True)
        return (*(r + t * s for t, r, s in taps), self.filter)


@dataclass(frozen=True)
class VoxelForm:
    """The voxel form of one workload: `Tiling.width` registers of voxels, `rows` rows, `planes` planes a task tile."""

    work: Workload
    tiling: Tiling

    @property
    def residues(self) -> list[tuple[int, ...]]:
        """The phases, depth outermost."""
        return list(itertools.product(*(range(axis.stride) for axis in self.work.plan.axes)))

    @property
    def sums(self) -> int:
        """Registers of sums for one register of voxels."""
        return len(self.residues) * self.work.plan.filters

    @property
    def row_taps(self) -> list[tuple[int, int]]:
        """Taps of depth and height: one loop over the channels for each."""
        depth, height, _ = self.work.plan.axes
        return list(itertools.product(range(depth.max_taps), range(height.max_taps)))

    def products(self, a: int, b: int) -> list[_Product]:
        """The products of depth tap ``a`` and height tap ``b``, in the order of the packed weights."""
        found = []
        for t in range(self.work.plan.axes[2].max_taps):
            for residue in self.residues:
                tap = (a, b, t)
                inside = all(
                    r + k * axis.stride < axis.kernel
                    for r, k, axis in zip(residue, tap, self.work.plan.axes, strict=True)
                )
                if inside:
                    found += [
                        _Product(tap, residue, f)  # type: ignore[arg-type]
                        for f in range(self.work.plan.filters)
                    ]
        return found

    @property
    def vectors(self) -> int:
        """Registers of voxels in a row."""
        return -(-positions(self.work.plan.axes[2]) // self.tiling.vector)

    @property
    def lead(self) -> int:
        """Voxels of a packed row before the first position."""
        axis = self.work.plan.axes[2]
        return (axis.max_taps - 1) * axis.dilation

    @property
    def ring_shape(self) -> tuple[int, ...]:
        """Packed input: planes of the ring, rows, channels, voxels."""
        depth, height, _ = self.work.plan.axes
        return (
            (depth.max_taps - 1) * depth.dilation + 1,
            self.tiling.rows + (height.max_taps - 1) * height.dilation,
            self.work.plan.in_channels,
            self.lead + self.vectors * self.tiling.vector,
        )

    @property
    def line_shape(self) -> tuple[int, ...]:
        """Finished rows of one position, by sum: phases x filters, voxels."""
        return (self.sums, self.vectors * self.tiling.vector)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """One output row with its phases interleaved, before the crop."""
        axis = self.work.plan.axes[2]
        factor = axis.stride * (1 if self.work.plan.channels_first else self.work.plan.filters)
        return (self.vectors * self.tiling.vector * factor,)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("voxel", self.work.plan.kernel_shape)

    def packer(self) -> Any:
        """The function that packs the weights."""
        work, plan = self.work, self.work.plan
        dtype = work.accumulate_dtype

        def value(element: Any) -> Any:
            wide = widen(element, work.variable_dtype, dtype)
            if work.input_dtype in (work.variable_dtype, dtype):
                return wide
            return widen(narrow(wide, work.input_dtype), work.input_dtype, dtype)

        def body() -> None:
            kernel = buffer("kernel", plan.kernel_shape, storage(work.variable_dtype))
            bias = buffer("bias", (plan.filters,), storage(work.variable_dtype))
            packed = buffer("packed", (products(work) * plan.in_channels,), dtype)
            packed_bias = buffer("packed_bias", (plan.filters,), dtype)
            rounded = Formula(value, storage(work.variable_dtype), (1,))
            strides = tuple(axis.stride for axis in plan.axes)
            offset = 0
            for a, b in self.row_taps:
                found = self.products(a, b)
                with T.serial(i64(0), i64(plan.in_channels)) as c:
                    for j, product in enumerate(found):
                        index = [i64(i) for i in product.kernel_index(strides)]
                        element = rounded.at(kernel[(*index, c)], i64(0))
                        T.buffer_store(packed, element, [i64(offset + j) + c * i64(len(found))])
                offset += len(found) * plan.in_channels
            with T.serial(i64(0), i64(plan.filters)) as f:
                element = rounded.at(bias[f], i64(0)) if work.use_bias else tirx.const(0, dtype)
                T.buffer_store(packed_bias, element, [f])

        return prim_func("pack", body)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy."""
        dtype, compute = np.dtype(self.work.accumulate_dtype), numpy_dtype(self.work.input_dtype)
        with np.errstate(over="ignore"):
            taps = kernel.astype(compute).astype(dtype)
            start = np.zeros(self.work.plan.filters, dtype)
            if bias is not None:
                start = bias.astype(compute).astype(dtype)
        strides = tuple(axis.stride for axis in self.work.plan.axes)
        pieces = []
        for a, b in self.row_taps:
            chosen = [taps[p.kernel_index(strides)] for p in self.products(a, b)]
            if chosen:
                pieces.append(np.stack(chosen, axis=-1).ravel())
        return np.concatenate([*pieces, start])

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        depth, height, _ = self.work.plan.axes
        chunks = -(-positions(depth) // self.tiling.planes)
        blocks = -(-positions(height) // self.tiling.rows)
        ring = Region(None, 0, self.ring_shape)
        line = Region(None, ring.size, self.line_shape)
        row = Region(None, ring.size + line.size, self.row_shape)
        size = products(self.work) * self.work.plan.in_channels
        scratch = row.offset + row.size
        frame = Frame(self.work, chunks * blocks, size, self.work.plan.filters, scratch)
        emit = _Emitter(self, frame)
        return frame.kernel(lambda n, index: emit.tile(n, *divide(index, blocks))), frame


@dataclass(frozen=True)
class _Emitter:
    """Emits the statements of a voxel kernel."""

    form: VoxelForm
    frame: Frame

    @property
    def _ring(self) -> Region:
        return Region(self.frame.scratch, 0, self.form.ring_shape)

    @property
    def _line(self) -> Region:
        return Region(self.frame.scratch, self._ring.size, self.form.line_shape)

    @property
    def _row(self) -> Region:
        offset = self._ring.size + self._line.size
        return Region(self.frame.scratch, offset, self.form.row_shape)

    @property
    def _dtype(self) -> str:
        return self.form.work.accumulate_dtype

    def tile(self, n: Any, chunk: Any, block: Any) -> None:
        """Planes and rows of one task tile."""
        depth, height, _ = self.form.work.plan.axes
        slots = self.form.ring_shape[0]
        first_q = chunk * i64(self.form.tiling.planes) + i64(first_position(depth))
        end_q = tirx.min(
            first_q + i64(self.form.tiling.planes), i64(first_position(depth) + positions(depth))
        )
        first_row = block * i64(self.form.tiling.rows) + i64(first_position(height))
        end_row = tirx.min(
            first_row + i64(self.form.tiling.rows), i64(first_position(height) + positions(height))
        )
        lowest = first_row - i64((height.max_taps - 1) * height.dilation)
        with T.serial(i64(0), end_q - first_q + i64(slots - 1)) as step:
            q = first_q - i64(slots - 1) + step
            with T.If(tirx.all(q >= i64(0), q < i64(depth.size))):
                with T.Then():
                    self._pack(n, q, lowest)
            with T.If(step >= i64(slots - 1)):
                with T.Then():
                    with T.serial(i64(0), end_row - first_row) as r:
                        self._position(q, first_row + r, lowest)
                        self._finish(n, q, first_row + r)

    # --- packing -----------------------------------------------------------------------------------

    def _pack(self, n: Any, d: Any, lowest: Any) -> None:
        """The rows of plane ``d``: ``[channel][voxel]`` with zeros where there is no input."""
        _, height, width = self.form.work.plan.axes
        slots, rows, channels, voxels = self.form.ring_shape
        # Voxel w of the input lies at w + shift; the border is what is left on both sides.
        shift = self.form.lead - first_position(width)
        first, last = max(0, shift), min(voxels, shift + width.size)
        zero = tirx.const(0, self._dtype)
        slot = tirx.floormod(d, i64(slots))
        with T.serial(i64(0), i64(rows)) as r:
            h = lowest + r
            with T.If(tirx.all(h >= i64(0), h < i64(height.size))):
                with T.Then():
                    for start, count in ((0, first), (last, voxels - last)):
                        with T.grid(i64(channels), i64(max(0, count))) as (c, v):
                            self._ring.store(zero, slot, r, c, i64(start) + v)
                    self._copy_row(n, d, h, slot, r, first, last - first, shift)

    def _copy_row(
        self, n: Any, d: Any, h: Any, slot: Any, r: Any, first: int, count: int, shift: int
    ) -> None:
        work = self.form.work
        channels = work.plan.in_channels

        def element(w: Any, c: Any) -> Any:
            return widen(self.frame.input(n, d, h, w, c), work.input_dtype, self._dtype)

        if work.plan.channels_first:
            for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
                with T.grid(i64(channels), i64(vectors)) as (c, o), T.vectorized(i64(0), i64(size)) as v:
                    voxel = i64(first + start) + o * i64(size) + v
                    self._ring.store(element(voxel - i64(shift), c), slot, r, c, voxel)
            return
        size = self.form.tiling.vector
        while size > 1 and (size > channels or size > count):
            size //= 2
        if size < 4 or work.input_dtype == "bfloat16":
            # bfloat16 is widened lane by lane by shifts, which a register of uint16 rows would not survive.
            with T.grid(i64(channels), i64(count)) as (c, v):
                self._ring.store(element(i64(first - shift) + v, c), slot, r, c, i64(first) + v)
            return
        kind = f"{self._dtype}x{size}"
        across, down = count // size, channels // size
        with T.grid(i64(across), i64(down)) as (o, p):
            w, c = i64(first - shift) + o * i64(size), p * i64(size)

            def load(i: int) -> Any:
                row = self.frame.x[n, d, h, w + i64(i), lanes(c, size)]
                return row if work.input_dtype == self._dtype else row.astype(kind)

            def store(j: int, value: Any) -> None:
                place = self._ring.at(slot, r, c + i64(j), w + i64(shift))
                T.buffer_store(self.frame.scratch, value, [lanes(place, size)])

            transpose(size, kind, load, store)
        for c0, c1, v0, v1 in (
            (down * size, channels, 0, count),
            (0, down * size, across * size, count),
        ):
            with T.grid(i64(c1 - c0), i64(v1 - v0)) as (c, v):
                w = i64(first - shift + v0) + v
                self._ring.store(element(w, i64(c0) + c), slot, r, i64(c0) + c, w + i64(shift))

    # --- sums --------------------------------------------------------------------------------------

    def _position(self, q: Any, row: Any, lowest: Any) -> None:
        """All sums of one (plane, row) of positions, into the line."""
        group = self.form.tiling.width
        whole, rest = divmod(self.form.vectors, group)
        for start, tiles, vectors in ((0, whole, group), (whole * group, 1, rest)):
            if tiles * vectors:
                with T.serial(i64(0), i64(tiles)) as tile:
                    first = i64(start * self.form.tiling.vector) + tile * i64(
                        vectors * self.form.tiling.vector
                    )
                    self._registers(q, row, lowest, first, vectors)

    def _registers(self, q: Any, row: Any, lowest: Any, first: Any, vectors: int) -> None:
        form, plan, size = self.form, self.form.work.plan, self.form.tiling.vector
        depth, height, width = plan.axes
        kind = f"{self._dtype}x{size}" if size > 1 else self._dtype
        order = {(r, f): i for i, (r, f) in enumerate(itertools.product(form.residues, range(plan.filters)))}
        sums = T.sblock_alloc_buffer((i64(form.sums * vectors),), kind, scope="local")
        inputs = T.sblock_alloc_buffer((i64(vectors),), kind, scope="local")
        for (_, f), i in order.items():
            for m in range(vectors):
                start = tirx.Broadcast(self.frame.bias[i64(f)], size)
                T.buffer_store(sums, start, [i64(i * vectors + m)])
        offset = 0
        for a, b in form.row_taps:
            found = form.products(a, b)
            if not found:
                continue
            d = q - i64(a * depth.dilation)
            h = row - i64(b * height.dilation)
            slot = tirx.floormod(d, i64(form.ring_shape[0]))
            inside = tirx.all(d >= i64(0), d < i64(depth.size), h >= i64(0), h < i64(height.size))
            with T.If(inside):
                with T.Then():
                    with T.serial(i64(0), i64(plan.in_channels)) as c:
                        for j, product in enumerate(found):
                            t = product.tap[2]
                            if j == 0 or found[j - 1].tap[2] != t:
                                shift = form.lead - t * width.dilation
                                for m in range(vectors):
                                    place = self._ring.at(
                                        slot, h - lowest, c, first + i64(shift + m * size)
                                    )
                                    x = self.frame.scratch[lanes(place, size)]
                                    T.buffer_store(inputs, x, [i64(m)])
                            weight = self.frame.weights[i64(offset + j) + c * i64(len(found))]
                            cell = order[product.residue, product.filter] * vectors
                            for m in range(vectors):
                                total = sums[i64(cell + m)] + inputs[i64(m)] * tirx.Broadcast(weight, size)
                                T.buffer_store(sums, total, [i64(cell + m)])
            offset += len(found) * plan.in_channels
        for i in range(form.sums):
            for m in range(vectors):
                place = self._line.at(i64(i), first + i64(m * size))
                T.buffer_store(self.frame.scratch, sums[i64(i * vectors + m)], [lanes(place, size)])

    # --- output ------------------------------------------------------------------------------------

    def _finish(self, n: Any, q: Any, row: Any) -> None:
        """From the line to the output rows of this position: one for each phase of depth and height."""
        plan = self.form.work.plan
        depth, height, width = plan.axes
        pairs = itertools.product(range(depth.stride), range(height.stride))
        for index, (a, b) in enumerate(pairs):
            od = q * i64(depth.stride) + i64(a - depth.lo)
            oh = row * i64(height.stride) + i64(b - height.lo)
            inside = tirx.all(od >= i64(0), od < i64(depth.out), oh >= i64(0), oh < i64(height.out))
            with T.If(inside):
                with T.Then():
                    first = index * width.stride * plan.filters
                    if plan.channels_first:
                        for f in range(plan.filters):
                            chosen = [first + r * plan.filters + f for r in range(width.stride)]
                            self._write(n, od, oh, chosen, f)
                    else:
                        chosen = list(range(first, first + width.stride * plan.filters))
                        self._write(n, od, oh, chosen, None)

    def _write(self, n: Any, od: Any, oh: Any, chosen: list[int], channel: int | None) -> None:
        """Interleave the sums of one output row, crop it, apply the activation, write it."""
        plan, size, factor = self.form.work.plan, self.form.tiling.vector, len(chosen)
        width = plan.axes[2]
        if factor & (factor - 1) == 0 and size > 1:
            kind = f"{self._dtype}x{size}"
            with T.serial(i64(0), i64(self.form.vectors)) as m:
                loaded = [
                    self.frame.scratch[lanes(self._line.at(i64(i), m * i64(size)), size)]
                    for i in chosen
                ]
                for j, value in enumerate(interleave(size, kind, loaded)):
                    place = self._row.at(m * i64(size * factor) + i64(j * size))
                    T.buffer_store(self.frame.scratch, value, [lanes(place, size)])
        else:
            with T.grid(i64(self.form.vectors * size), i64(factor)) as (v, j):
                # The chosen sums are equally far apart in the line.
                step = chosen[1] - chosen[0] if factor > 1 else 1
                value = self._line.load(i64(chosen[0]) + j * i64(step), v)
                self._row.store(value, v * i64(factor) + j)
        per_voxel = factor // width.stride
        skip = (width.lo - first_position(width) * width.stride) * per_voxel
        total = width.out * per_voxel
        for start, vectors, count in finish.chunks(total, size):
            last = finish.result(self.form.work, (count,))
            with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(count)) as v:
                place = i64(start) + o * i64(count) + v
                value = last.at(self._row.load(place + i64(skip)), v)
                if channel is None:
                    w, f = divide(place, per_voxel)
                else:
                    w, f = place, i64(channel)
                self.frame.output(value, n, (od, oh, w), f)
