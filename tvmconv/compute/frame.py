"""What every form shares.

Task tiles, output rows, tap ranges, scratch, and the way a row is finished.

A kernel computes the task tiles ``begin`` to ``end`` one after the other; the C run time hands
ranges of them to threads.

Depth and height taps that fall outside the input are never executed: the loops over them have the
exact bounds, which depend on the row. So no branch is left inside, and 0 * NaN cannot leak.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.ir import Var
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as script
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.element import storage
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = [
    "LINE_BYTES",
    "Frame",
    "Region",
    "Row",
    "RowTiles",
    "Taps",
    "buffer",
    "divide",
    "every",
    "first_position",
    "i64",
    "outputs",
    "positions",
    "prim_func",
]

#: Bytes of a line of the cache.
LINE_BYTES = 64


def i64(value: int) -> Any:
    """A 64-bit constant: indices stay 64-bit, or LLVM recomputes an address for every load."""
    return tirx.IntImm("int64", value)


def buffer(name: str, shape: tuple[Any, ...], dtype: str, align: int = 0) -> Any:
    """A buffer parameter that promises no more alignment than its element's, or ``align``.

    A promise of more is not checked by anyone and ends in a fault on a caller's array.
    """
    dims = tuple(i64(max(size, 1)) if isinstance(size, int) else size for size in shape)
    bits = int("".join(filter(str.isdigit, dtype)))
    return T.arg(name, T.buffer(dims, dtype, align=align or bits // 8))


def prim_func(name: str, body: Callable[[], None]) -> Any:
    """Build the function ``name`` from the statements that ``body`` emits."""
    with IRBuilder() as ib:
        with script.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "global_symbol": name})
            body()
    return ib.get()


@dataclass(frozen=True)
class Region:
    """A dense array inside a one-dimensional buffer, at ``offset`` (an integer or expression)."""

    buffer: Any
    offset: Any
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def at(self, *indices: Any) -> Any:
        """The element's index in the buffer."""
        flat: Any = i64(0)
        for index, extent in zip(indices, self.shape, strict=True):
            flat = flat * i64(extent) + index
        return flat + self.start

    @property
    def start(self) -> Any:
        """The offset as an expression."""
        return i64(self.offset) if isinstance(self.offset, int) else self.offset

    def part(self, *indices: Any) -> Region:
        """The array at these indices of the first axes."""
        kept = self.shape[len(indices) :]
        return Region(self.buffer, self.at(*indices, *[i64(0)] * len(kept)), kept)

    def load(self, *indices: Any) -> Any:
        """The element."""
        return self.buffer[self.at(*indices)]

    def store(self, value: Any, *indices: Any) -> None:
        """Emit a store."""
        T.buffer_store(self.buffer, value, [self.at(*indices)])


@dataclass(frozen=True)
class Taps:
    """The taps of one output position along one axis whose inputs exist.

    ``first`` to ``first + count``.

    Tap number ``t`` is kernel entry ``residue + t * stride`` and reads input ``q - t * dilation``.
    """

    axis: Axis
    residue: Any
    q: Any
    first: Any
    count: Any

    @classmethod
    def of(cls, axis: Axis, out: Any) -> Taps:
        """The taps that reach output ``out`` (an expression)."""
        position = out + i64(axis.lo)
        stride, dilation = i64(axis.stride), i64(axis.dilation)
        residue = tirx.floormod(position, stride)
        q = tirx.floordiv(position, stride)
        all_taps = tirx.floordiv(i64(axis.kernel + axis.stride - 1) - residue, stride)
        first = tirx.max(
            tirx.floordiv(q - i64(axis.size - 1) + i64(axis.dilation - 1), dilation), i64(0)
        )
        last = tirx.min(all_taps, tirx.floordiv(q, dilation) + i64(1))
        return cls(axis, residue, q, first, tirx.max(last - first, i64(0)))

    def kernel_index(self, tap: Any) -> Any:
        """The entry of the kernel for tap number ``first + tap``."""
        return self.residue + (self.first + tap) * i64(self.axis.stride)

    def input_index(self, tap: Any) -> Any:
        """The input position for tap number ``first + tap``."""
        return self.q - (self.first + tap) * i64(self.axis.dilation)


@dataclass(frozen=True)
class Row:
    """One output row: place, depth and height taps, start and channel part of its tile."""

    n: Any
    od: Any
    oh: Any
    depth: Taps
    height: Taps
    start: tuple[Any, Any]
    split: Any


@dataclass
class Frame:
    """The parameters of a kernel while it is built, and the loop over its task tiles.

    Attributes
    ----------
    tiles_per_sample : int
        Task tiles of one sample.
    packed_size, bias_size, scratch_size : int
        Elements of the accumulation dtype.
    x, weights, bias, y, scratch : tvm.tirx.Buffer
        The parameters, inside `kernel` only.
    streams : bool
        Whether outputs leave past the caches (`streaming`).
    begins : tvm.tirx.Expr
        Whether the tile is the first of its call or sample: scratch holds nothing for it yet.
    call : tuple of tvm.tirx.Expr
        Number of the tile in the batch, of the first of its call, and of the one behind the last.
    """

    work: Workload
    tiles_per_sample: int
    packed_size: int
    bias_size: int
    scratch_size: int
    streams: bool = False
    x: Any = field(init=False)
    weights: Any = field(init=False)
    bias: Any = field(init=False)
    y: Any = field(init=False)
    scratch: Any = field(init=False)
    begins: Any = field(init=False)
    call: tuple[Any, Any, Any] = field(init=False)

    def kernel(self, tile: Callable[[Any, Any], None]) -> Any:
        """The kernel function: ``tile(n, index)`` emits one task tile of sample ``n``."""
        return prim_func("kernel", lambda: self._body(tile))

    def _body(self, tile: Callable[[Any, Any], None]) -> None:
        plan, dtype = self.work.plan, self.work.accumulate_dtype
        batch, begin, end = (Var(name, "int64") for name in ("batch", "begin", "end"))
        size, dtype_in = (batch, *plan.input_shape[1:]), storage(self.work.input_dtype)
        # A caller's array of coupled channels has the alignment of one of them.
        self.x = buffer("input", size, dtype_in, 2 if self.work.coupled else 0)
        self.weights = buffer("weights", (self.packed_size,), dtype)
        self.bias = buffer("bias", (self.bias_size,), dtype)
        out = (batch, *self.work.output_shape[1:])
        self.y = buffer("output", out, storage(self.work.output_dtype))
        self.scratch = buffer("scratch", (self.scratch_size,), dtype)
        for var in (batch, begin, end):
            T.arg(var.name, var)
        with T.serial(i64(0), end - begin) as step:
            with T.sblock("tile"):
                number = T.axis.spatial(batch * i64(self.tiles_per_sample), begin + step)
                self.touch()
                n, index = divide(number, self.tiles_per_sample)
                self.call = (number, begin, end)
                self.begins = tirx.any(number == begin, index == i64(0))
                tile(n, index)

    def touch(self) -> None:
        """Declare the block's regions whole: exact ones would cost time, and nobody reads them."""
        read = [self.x, self.weights, self.bias, self.scratch]
        write = [self.y, self.scratch]
        T.reads(*(_whole(b) for b in read))
        T.writes(*(_whole(b) for b in write))

    def input(self, n: Any, d: Any, h: Any, w: Any, c: Any) -> Any:
        """An input element, as stored."""
        return self.x[n, c, d, h, w] if self.work.plan.channels_first else self.x[n, d, h, w, c]

    def input_register(self, n: Any, d: Any, h: Any, w: Any, c: Any, size: int) -> Any:
        """``size`` input elements that lie side by side, widened.

        Voxels where channels are first, else channels.
        """
        ramp = tirx.Ramp(w if self.work.plan.channels_first else c, i64(1), size)
        stored = self.input(n, d, h, *((ramp, c) if self.work.plan.channels_first else (w, ramp)))
        wide = self.work.accumulate_dtype
        if self.work.input_dtype == "bfloat16":
            bits = stored.astype(f"uint32x{size}") << tirx.Broadcast(tirx.const(16, "uint32"), size)
            return tirx.reinterpret(f"{wide}x{size}", bits)
        return stored if self.work.input_dtype == wide else stored.astype(f"{wide}x{size}")

    def output(self, value: Any, n: Any, place: tuple[Any, Any, Any], c: Any) -> None:
        """Emit the store of an output element, as stored, at voxel ``place``."""
        index = [n, c, *place] if self.work.plan.channels_first else [n, *place, c]
        T.buffer_store(self.y, value, index)

    def claim(self, n: Any, place: tuple[Any, Any, Any], c: Any, *, near: bool = True) -> None:
        """Bring the line of an output element into the first-level cache, else the second."""
        index = (n, c, *place) if self.work.plan.channels_first else (n, *place, c)
        address = tirx.address_of(self.y[index])
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 1, 3 if near else 2, 1))


@dataclass(frozen=True)
class RowTiles:
    """Task tiles of whole output rows.

    A tile is (input plane, block of input rows[, part of the channels]) and writes every output row
    whose first tap lies in it: all phases, so their input is read while it is in the cache.

    A ``stationary`` tile is (phase of depth, phase of height[, part of the channels]) instead and
    writes all rows of that phase: its weights are read from memory once, which is what counts where
    the kernel is larger than the volume.
    """

    work: Workload
    rows: int
    splits: int = 1
    stationary: bool = False

    @property
    def count(self) -> int:
        """Task tiles of one sample."""
        depth, height, _ = self.work.plan.axes
        if self.stationary:
            return depth.stride * height.stride * self.splits
        return positions(depth) * -(-positions(height) // self.rows) * self.splits

    @property
    def packed(self) -> tuple[int, int]:
        """Input planes and rows that a tile reads, packed.

        All of them, or one plane a depth tap and its rows.
        """
        depth, height, _ = self.work.plan.axes
        if self.stationary:
            return depth.size, height.size
        return depth.max_taps, self.rows + (height.max_taps - 1) * height.dilation

    def source(self, start: tuple[Any, Any], plane: Any, row: Any) -> tuple[Any, Any]:
        """The input plane and row that packed (plane, row) of a tile with ``start`` holds.

        They may not exist.
        """
        depth, height, _ = self.work.plan.axes
        if self.stationary:
            return plane, row
        lowest = start[1] - i64((height.max_taps - 1) * height.dilation)
        return start[0] - plane * i64(depth.dilation), lowest + row

    def place(self, row: Row, a: Any, b: Any) -> tuple[Any, Any]:
        """Where the input of depth tap ``a`` and height tap ``b`` of a row is packed.

        Plane and row.
        """
        height = self.work.plan.axes[1]
        d, h = row.depth.input_index(a), row.height.input_index(b)
        if self.stationary:
            return d, h
        lowest = row.start[1] - i64((height.max_taps - 1) * height.dilation)
        return row.depth.first + a, h - lowest

    def emit(
        self,
        frame: Frame,
        n: Any,
        index: Any,
        pack: Callable[[Any, tuple[Any, Any]], None] | None,
        parts: Sequence[Callable[[Row], None]],
    ) -> None:
        """One tile: ``pack(n, start)`` once, then all ``parts`` of each of its output rows.

        A stationary tile walks all rows for one part, then for the next, which reads other weights.
        It reads the whole input: the first of a sample packs that for those that follow in a call.
        """
        depth, height, _ = self.work.plan.axes
        rest, split = divide(index, self.splits)
        if self.stationary:
            residues = divide(rest, height.stride)
            start = (i64(0), i64(0))
            walks = [
                every(axis, residue)
                for axis, residue in zip((depth, height), residues, strict=True)
            ]
        else:
            plane, block = divide(rest, -(-positions(height) // self.rows))
            q = plane + i64(first_position(depth))
            first_row = block * i64(self.rows) + i64(first_position(height))
            start = (q, first_row)
            walks = [
                (*outputs(depth, q, q + i64(1)), 1),
                (*outputs(height, first_row, first_row + i64(self.rows)), 1),
            ]
        if pack is not None and self.stationary:
            with T.If(frame.begins), T.Then():
                pack(n, start)
        elif pack is not None:
            pack(n, start)
        together = [parts] if not self.stationary else [[part] for part in parts]
        (od, od_count, od_step), (oh, oh_count, oh_step) = walks
        for number, some in enumerate(together):
            with T.grid(od_count, oh_count) as (a, b):
                with T.sblock(f"row_{number}"):
                    vod = T.axis.spatial(i64(depth.out), od + a * i64(od_step))
                    voh = T.axis.spatial(i64(height.out), oh + b * i64(oh_step))
                    frame.touch()
                    taps = Taps.of(depth, vod), Taps.of(height, voh)
                    for part in some:
                        part(Row(n, vod, voh, *taps, start, split))


def every(axis: Axis, residue: Any) -> tuple[Any, Any, int]:
    """The outputs of one phase: the first of them, their number, their distance."""
    first = tirx.floormod(residue - i64(axis.lo), i64(axis.stride))
    count = tirx.floordiv(i64(axis.out - 1 + axis.stride) - first, i64(axis.stride))
    return first, tirx.max(count, i64(0)), axis.stride


def positions(axis: Axis) -> int:
    """Input positions at which an output has its first tap."""
    # An empty output has no tile, but the code for it must not divide by 0.
    return max(1, (axis.out - 1 + axis.lo) // axis.stride - first_position(axis) + 1)


def first_position(axis: Axis) -> int:
    """The first of them."""
    return axis.lo // axis.stride


def divide(value: Any, by: int) -> tuple[Any, Any]:
    """Quotient and remainder."""
    return tirx.floordiv(value, i64(by)), tirx.floormod(value, i64(by))


def outputs(axis: Axis, q: Any, q_end: Any) -> tuple[Any, Any]:
    """The outputs whose first tap lies in [q, q_end): the first of them and their number."""
    first = tirx.max(q * i64(axis.stride) - i64(axis.lo), i64(0))
    last = tirx.min(q_end * i64(axis.stride) - i64(axis.lo), i64(axis.out))
    return first, last - first


def _whole(target: Any) -> Any:
    return target[tuple(slice(i64(0), size) for size in target.shape)]
