"""What every GPU kernel shares: parameters, blocks and threads, indices, tap ranges.

Indices within a sample are 32 bits wide where they fit, since a GPU divides 64-bit integers slowly;
the sample's own offset is added in 64 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tvm import tirx
from tvm.ir import Var
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.registers import Registers, Shared
from tvmconv.compute.element import storage
from tvmconv.compute.frame import buffer, prim_func
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["Taps", "Threads", "divide", "split"]


@dataclass
class Threads:
    """One kernel while it is built.

    Parameters
    ----------
    work : Workload
        Whose buffers it takes.
    grid, threads
        Blocks along x, y, z of one sample, and threads of a block.
    per_sample
        Whether x counts the samples too.
    serial
        Whether blocks and threads become loops of one function, for a CPU.
    input_dtype
        Of the input's buffer.
    """

    work: Workload
    weights_dtype: str
    weights_size: int
    bias_size: int
    grid: tuple[int, int, int]
    threads: int
    per_sample: bool
    serial: bool
    input_dtype: str
    x: Any = field(init=False)
    weights: Any = field(init=False)
    bias: Any = field(init=False)
    y: Any = field(init=False)
    workspace: Any = field(init=False)
    batch: Any = field(init=False)
    block: tuple[Any, Any, Any] = field(init=False)
    thread: Any = field(init=False)

    @property
    def index(self) -> str:
        """The dtype of indices within a sample."""
        shapes = (
            self.work.plan.input_shape[1:],
            self.work.plan.output_shape[1:],
            self.work.plan.kernel_shape,
        )
        # A block may step over the end by less than a block.
        most = max(*map(math.prod, shapes), self.weights_size, math.prod(self.grid) * self.threads)
        return "int32" if most < 2**30 else "int64"

    def const(self, value: int) -> Any:
        """A constant index."""
        return tirx.IntImm(self.index, value)

    def bound(self, size: int) -> Any:
        """A constant bound of what is stored, as an index.

        In serial loops LLVM must not see it: a store of 16-bit numbers under a mask of one lane,
        which a constant bound can leave of the last vector, becomes one of 32 bits.
        """
        if not self.serial or storage(self.work.output_dtype) not in {"uint16", "float16"}:
            return self.const(size)
        # Always 0: no batch is as large as that.
        nothing = tirx.shift_right(self.batch, tirx.IntImm("int64", 48))
        return self.const(size) + _as(nothing, self.index)

    def function(self, symbol: str, arguments: tuple[str, ...], body: Callable[[], None]) -> Any:
        """The kernel ``symbol``: ``body()`` emits what one block does."""

        def whole() -> None:
            self._parameters(arguments)
            with self._blocks():
                if self.serial:
                    body()
                else:
                    with T.launch_thread("threadIdx.x", self.threads) as thread:
                        self.thread = _as(thread, self.index)
                        body()

        return prim_func(symbol, whole)

    def _parameters(self, arguments: tuple[str, ...]) -> None:
        work = self.work
        self.batch = Var("batch", "int64")
        sizes = {
            "input": (math.prod(work.plan.input_shape[1:]), self.input_dtype),
            "weights": (self.weights_size, self.weights_dtype),
            "bias": (self.bias_size, work.accumulate_dtype),
            "output": (math.prod(work.output_shape[1:]), storage(work.output_dtype)),
            "workspace": (math.prod(work.output_shape[1:]), work.accumulate_dtype),
        }
        fields = {"input": "x", "output": "y"}
        for name in arguments:
            if name == "batch":
                T.arg("batch", self.batch)
                continue
            size, dtype = sizes[name]
            # Only the first sample's: a shape with the batch in it would say nothing more.
            setattr(self, fields.get(name, name), buffer(name, (max(size, 1),), dtype))

    @contextmanager
    def _blocks(self) -> Iterator[None]:
        x = self.grid[0]
        extent: Any = tirx.IntImm("int64", x)
        if self.per_sample:
            extent = extent * self.batch
        names = ("blockIdx.x", "blockIdx.y", "blockIdx.z")
        extents = (extent, *(tirx.IntImm("int64", size) for size in self.grid[1:]))
        if self.serial:
            with T.grid(*extents) as (a, b, c):
                self.block = (a, _as(b, self.index), _as(c, self.index))
                yield
            return
        narrow = [extent.astype("int32"), *(tirx.IntImm("int32", s) for s in self.grid[1:])]
        with T.launch_thread(names[0], narrow[0]) as a, T.launch_thread(names[1], narrow[1]) as b:
            with T.launch_thread(names[2], narrow[2]) as c:
                self.block = (a, _as(b, self.index), _as(c, self.index))
                yield

    def sample(self) -> tuple[Any, Any]:
        """The block's sample (64 bits) and its number within the sample."""
        a = self.block[0]
        number = tirx.IntImm(str(a.ty), self.grid[0])
        return (
            _as(tirx.truncdiv(a, number), "int64"),
            _as(tirx.truncmod(a, number), self.index),
        )

    @contextmanager
    def each_thread(self) -> Iterator[Any]:
        """What each thread of a block does up to a barrier; the value is the thread's number."""
        if not self.serial:
            yield self.thread
            return
        with T.serial(tirx.IntImm(self.index, 0), self.const(self.threads)) as thread:
            yield thread

    def named(self, value: Any) -> Any:
        """The value under a name of its own, in the innermost block.

        An index that is written out again in every address is computed again there.
        """
        dtype = str(value.ty)
        cell = T.sblock_alloc_buffer((tirx.IntImm("int32", 1),), dtype, scope="local")
        T.buffer_store(cell, value, [tirx.IntImm("int32", 0)])
        return cell[tirx.IntImm("int32", 0)]

    @contextmanager
    def when(self, condition: Any | None) -> Iterator[None]:
        """Statements under a condition; None: always."""
        if condition is None:
            yield
            return
        with T.If(condition), T.Then():
            yield

    def choose(
        self, conditions: list[Any], then: Callable[[], None], otherwise: Callable[[], None]
    ) -> None:
        """``then`` under all conditions, else ``otherwise``; no question where there is none."""
        if not conditions:
            then()
            return
        with T.If(tirx.all(*conditions)):
            with T.Then():
                then()
            with T.Else():
                otherwise()

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """A block for the temporaries of what is emitted inside."""
        with T.sblock(name):
            T.reads()
            T.writes()
            yield

    def registers(self, shape: tuple[int, ...], dtype: str) -> Registers:
        """An array of each thread that lives across barriers, in the innermost block."""
        return Registers.of(self, shape, dtype)

    def shared(self, shape: tuple[int, ...], dtype: str) -> Shared:
        """An array in shared memory, in the innermost block."""
        size = self.const(math.prod(shape))
        buffer = T.sblock_alloc_buffer((size,), dtype, scope="shared")
        return Shared(buffer, shape, self.const)

    def dynamic(self, shapes: Sequence[tuple[int, ...]], dtype: str) -> list[Shared]:
        """Arrays one after another in memory whose size the launch gives: over 48 KiB it must be.

        A kernel can have one such memory.
        """
        size = self.const(sum(map(math.prod, shapes)))
        scope = "shared" if self.serial else "shared.dyn"
        buffer = T.sblock_alloc_buffer((size,), dtype, scope=scope)
        found: list[Shared] = []
        for shape in shapes:
            offset = found[-1].offset + math.prod(found[-1].shape) if found else 0
            found.append(Shared(buffer, shape, self.const, offset))
        return found

    def barrier(self) -> None:
        """All threads of the block arrive here before one goes on."""
        if not self.serial:
            T.evaluate(T.tvm_storage_sync("shared"))

    def input_at(self, n: Any, d: Any, h: Any, w: Any, c: Any) -> Any:
        """The index of an input element."""
        return self.in_sample(n, self.flat_input((d, h, w), c))

    def flat_input(self, place: Sequence[Any], c: Any) -> Any:
        """The same within its sample."""
        plan = self.work.plan
        return self._flat(place, c, [axis.size for axis in plan.axes], plan.in_channels)

    def in_sample(self, n: Any, flat: Any) -> Any:
        """The index of an input element from that within sample ``n``."""
        sample = math.prod(self.work.plan.input_shape[1:])
        return n * tirx.IntImm("int64", sample) + _as(flat, "int64")

    def output_at(self, n: Any, place: tuple[Any, Any, Any], c: Any) -> Any:
        """The index of an output element."""
        shape = self.work.output_shape[1:]
        first = self.work.plan.channels_first
        sizes, channels = (shape[1:], shape[0]) if first else (shape[:3], shape[3])
        sample = tirx.IntImm("int64", math.prod(shape))
        return n * sample + _as(self._flat(place, c, list(sizes), channels), "int64")

    def _flat(self, place: Any, c: Any, sizes: list[int], channels: int) -> Any:
        d, h, w = place
        flat = (d * self.const(sizes[1]) + h) * self.const(sizes[2]) + w
        if self.work.plan.channels_first:
            return c * self.const(math.prod(sizes)) + flat
        return flat * self.const(channels) + c


@dataclass(frozen=True)
class Taps:
    """The taps of one output position along one axis whose inputs exist.

    As `tvmconv.compute.frame.Taps`, but with indices of any width and no negative quotient.
    """

    axis: Axis
    residue: Any
    q: Any
    first: Any
    count: Any

    @classmethod
    def of(cls, axis: Axis, out: Any) -> Taps:
        """The taps that reach output ``out`` (an expression, not negative)."""

        def const(value: int) -> Any:
            return tirx.IntImm(str(out.ty), value)

        q, residue = divide(out + const(axis.lo), axis.stride)
        every = divide(const(axis.kernel + axis.stride - 1) - residue, axis.stride)[0]
        beyond = tirx.max(q - const(axis.size - 1), const(0))
        first = divide(beyond + const(axis.dilation - 1), axis.dilation)[0]
        last = tirx.min(every, divide(q, axis.dilation)[0] + const(1))
        return cls(axis, residue, q, first, tirx.max(last - first, const(0)))

    def named(self, name: Callable[[Any], Any]) -> Taps:
        """The same, each number computed once."""
        return Taps(self.axis, name(self.residue), name(self.q), name(self.first), name(self.count))

    def kernel_index(self, tap: Any) -> Any:
        """The entry of the kernel for tap number ``first + tap``."""
        return self.residue + (self.first + tap) * tirx.IntImm(str(tap.ty), self.axis.stride)

    def input_index(self, tap: Any) -> Any:
        """The input position for tap number ``first + tap``."""
        return self.q - (self.first + tap) * tirx.IntImm(str(tap.ty), self.axis.dilation)


def divide(value: Any, by: int) -> tuple[Any, Any]:
    """Quotient and remainder of a value that is not negative."""
    divisor = tirx.IntImm(str(value.ty), by)
    if by == 1:
        return value, tirx.IntImm(str(value.ty), 0)
    return tirx.truncdiv(value, divisor), tirx.truncmod(value, divisor)


def split(value: Any, sizes: tuple[int, ...]) -> list[Any]:
    """The indices of a flat index that is not negative; the first is not bounded."""
    found = []
    for size in reversed(sizes[1:]):
        value, rest = divide(value, size)
        found.append(rest)
    return [value, *reversed(found)]


def _as(value: Any, dtype: str) -> Any:
    return value if str(value.ty) == dtype else value.astype(dtype)
