"""Several slices in shared memory: copies of the later ones are on their way, one is multiplied.

An input that does not exist is a copy of nothing, which writes zeros. Where inputs do not lie side
by side in 16 bytes (channels first, or a number of them that is no multiple) they go through
registers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.operands import CHUNKS, Rows
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.tensor import call
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.cuda.walk import Walk, Walked

__all__ = ["Pipeline", "Pipelined"]


class Pipelined(Walked, Protocol):
    """The forms whose slices come so."""

    @property
    def operands(self) -> Rows:
        """How the numbers lie."""

    @property
    def dynamic_bytes(self) -> int:
        """Shared memory that the launch gives; 0 where the kernel declares all of it."""

    @property
    def rows(self) -> int:
        """Rows of 64 bytes that a slice has of each voxel and column."""


class Pipeline(Walk):
    """Emits what one block of threads does.

    Parameters
    ----------
    form, threads
        The form, and the kernel that is built.
    dtype : str
        Of numbers in shared memory.
    """

    def __init__(self, form: Pipelined, threads: Threads, dtype: str) -> None:
        tiling, operands = form.tiling, form.operands
        assert tiling.depth % operands.depth == 0, tiling
        chunks = tiling.block_voxels * CHUNKS
        self.few_inputs = chunks < tiling.threads
        assert self.few_inputs or chunks % tiling.threads == 0, tiling
        super().__init__(form, threads, max(1, chunks // tiling.threads), 1)
        self.form, self.operands, self.rows, self.dtype = form, operands, form.rows, dtype
        # Whether inputs are copied as they lie, 16 bytes at once.
        self.copied = self.along_channels and self.plan.in_channels % operands.chunk == 0
        weights = self.rows * tiling.block_channels * CHUNKS
        self.weight_loads = -(-weights // tiling.threads)
        self.few_weights = weights % tiling.threads != 0

    @abstractmethod
    def allocate(self) -> None:
        """Emit the sums."""

    @abstractmethod
    def start(self, thread: Any) -> None:
        """Set a thread's sums."""

    @abstractmethod
    def multiply(self, thread: Any, stage: Any) -> None:
        """Add the products of a slice to the sums."""

    @abstractmethod
    def finish(self) -> None:
        """Store the sums."""

    def emit(self) -> None:
        """The whole block."""
        t, tiling = self.threads, self.tiling
        flying, stages = t.const(tiling.stages - 1), tiling.stages
        row = (CHUNKS, self.operands.chunk)
        with self.tile():
            shapes = [
                (stages, self.rows, tile, *row)
                for tile in (tiling.block_voxels, tiling.block_channels)
            ]
            if self.form.dynamic_bytes:
                self.inputs, self.weights = t.dynamic(shapes, self.dtype)
            else:
                self.inputs, self.weights = (t.shared(shape, self.dtype) for shape in shapes)
            self.allocate()
            with t.each_thread() as thread:
                self.begin(thread)
                self.start(thread)
            with T.serial(t.const(0), flying) as step:
                with t.each_thread() as thread, t.scope("ahead"):
                    with T.If(step < self.steps), T.Then(), t.scope("slice"):
                        self._put(thread, step, self._bring(thread, step))
                        self.advance(thread)
                    self._call("copy_commit")
            with T.serial(t.const(0), self.steps) as step:
                self.wait()
                t.barrier()
                with t.each_thread() as thread, t.scope("step"):
                    more = step + flying < self.steps
                    later = divide(step + flying, stages)[1]
                    with T.If(more), T.Then():
                        brought = self._bring(thread, later)
                        self.advance(thread)
                    self._call("copy_commit")
                    self.multiply(thread, divide(step, stages)[1])
                    if not self.copied:
                        with T.If(more), T.Then():
                            self._put(thread, later, brought)
            self.finish()

    def wait(self) -> None:
        """Until the thread's copies of the slice that comes next have arrived."""
        self._call(f"copy_wait<{self.tiling.stages - 2}>")

    def _call(self, name: str) -> None:
        """A call that has no meaning where threads are serial."""
        if not self.threads.serial:
            call(name)

    def load_place(self, thread: Any, i: Any) -> tuple[Any, Any]:
        """Row of the tile and first channel of load ``i`` of a thread."""
        voxel, chunk = self._piece(thread, i)
        return voxel, chunk * self.threads.const(self.operands.chunk)

    def _piece(self, thread: Any, i: Any) -> tuple[Any, Any]:
        """Voxel of the tile and chunk of a row of load ``i``."""
        t, tiling = self.threads, self.tiling
        number = i * t.const(tiling.threads) + thread
        if self.along_channels:
            return divide(number, CHUNKS)
        chunk, voxel = divide(number, tiling.block_voxels)
        return voxel, chunk

    def _is_piece(self, thread: Any, i: Any) -> Any:
        """Whether a load is one of the tile's: tiles may be smaller than the threads."""
        t, tiling = self.threads, self.tiling
        if not self.few_inputs:
            return None
        return i * t.const(tiling.threads) + thread < t.const(tiling.block_voxels * CHUNKS)

    def input_place(self, stage: Any, row: Any, voxel: Any, chunk: Any) -> Any:
        """The index of a chunk of inputs in shared memory."""
        return self.inputs.at(stage, row, voxel, self._turned(voxel, chunk), self.threads.const(0))

    def weight_place(self, stage: Any, row: Any, column: Any, chunk: Any) -> Any:
        """The index of a chunk of weights in shared memory."""
        place = (stage, row, column, self._turned(column, chunk), self.threads.const(0))
        return self.weights.at(*place)

    def _turned(self, number: Any, chunk: Any) -> Any:
        """A chunk's place in its row, so that eight rows' same chunks are in different banks."""
        t = self.threads
        turn = tirx.bitwise_and(tirx.shift_right(number, t.const(1)), t.const(CHUNKS - 1))
        return tirx.bitwise_xor(chunk, turn)

    def _copy(
        self,
        to: Any,
        at: Any,
        source: Callable[[Any], tuple[Any, Any]],
        index: Any,
        exists: list[Any],
    ) -> None:
        """16 bytes to shared memory, zeros where nothing exists.

        ``source`` gives the buffer and the place in it for an ``index``.
        """
        t = self.threads
        if not t.serial:
            there: Any = tirx.IntImm("int32", 1)
            if exists:
                condition = tirx.all(*exists)
                # What does not exist is not read, but its address is still one of the buffer's.
                index = tirx.Select(condition, index, t.const(0))
                there = tirx.Select(condition, there, tirx.IntImm("int32", 0))
            buffer, place = source(index)
            call("copy_async", T.address_of(to.buffer[at]), T.address_of(buffer[place]), there)
            return

        def put(there: bool, v: Any) -> None:
            buffer, place = source(index + v)
            value = buffer[place] if there else tirx.const(0, self.dtype)
            T.buffer_store(to.buffer, value, [at + v])

        with T.serial(t.const(0), t.const(self.operands.chunk)) as v:
            t.choose(exists, lambda: put(True, v), lambda: put(False, v))

    def _bring(self, thread: Any, stage: Any) -> Registers | None:
        """Begin to copy the next slice; what goes through registers is returned."""
        tap, first = self.tap(thread), self.first(thread)
        self._bring_weights(thread, stage, self.packed_tap(tap), first)
        moved = self.moved(tap, first)
        if not self.copied:
            return self._gather(thread, tap, first, moved)
        t, tiling, plan = self.threads, self.tiling, self.plan
        with T.unroll(t.const(0), t.const(self.loads)) as i, t.scope("input"):
            voxel, piece = self._piece(thread, i)
            there = t.named(tirx.all(*self.reached(thread, i, tap)))
            start = t.named(self.input_index(thread, i, moved))
            channel = first + piece * t.const(self.operands.chunk)
            with t.when(self._is_piece(thread, i)), T.unroll(t.const(0), t.const(self.rows)) as r:
                inside = r * t.const(self.operands.depth)
                exists = [there]
                if plan.in_channels % tiling.depth:
                    exists.append(channel + inside < t.const(plan.in_channels))
                at = self.input_place(stage, r, voxel, piece)
                self._copy(
                    self.inputs, at, lambda k: (t.x, t.in_sample(self.n, k)),
                    start + inside, exists,
                )  # fmt: skip
        return None

    def _gather(self, thread: Any, tap: list[Any], first: Any, moved: Any) -> Registers:
        """Read inputs that are not side by side."""
        t, tiling, plan, chunk = self.threads, self.tiling, self.plan, self.operands.chunk
        brought = Registers.local(t, (self.loads, self.rows, chunk), self.dtype)
        plane = t.flat_input([t.const(0)] * 3, t.const(1))
        with T.unroll(t.const(0), t.const(self.loads)) as i, t.scope("input"):
            _, piece = self._piece(thread, i)
            is_piece = self._is_piece(thread, i)
            exists = self.reached(thread, i, tap) + ([] if is_piece is None else [is_piece])
            there = t.named(tirx.all(*exists))
            start = t.named(self.input_index(thread, i, moved))
            channel = first + piece * t.const(chunk)
            with T.unroll(t.const(0), t.const(self.rows)) as r:
                with T.unroll(t.const(0), t.const(chunk)) as v:
                    inside = r * t.const(self.operands.depth) + v
                    needed = [there]
                    if plan.in_channels % tiling.depth:
                        needed.append(channel + inside < t.const(plan.in_channels))
                    with T.If(tirx.all(*needed)):
                        with T.Then():
                            index = t.in_sample(self.n, start + inside * plane)
                            brought.store(t.x[index], thread, i, r, v)
                        with T.Else():
                            brought.store(tirx.const(0, self.dtype), thread, i, r, v)
        return brought

    def _put(self, thread: Any, stage: Any, brought: Registers | None) -> None:
        """From registers to shared memory."""
        if brought is None:
            return
        t = self.threads
        with T.unroll(t.const(0), t.const(self.loads)) as i:
            voxel, piece = self._piece(thread, i)
            with t.when(self._is_piece(thread, i)), T.unroll(t.const(0), t.const(self.rows)) as r:
                at = self.input_place(stage, r, voxel, piece)
                source = brought.at(thread, i, r, t.const(0))
                if t.serial:
                    with T.serial(t.const(0), t.const(self.operands.chunk)) as v:
                        value = brought.buffer[source + v]
                        T.buffer_store(self.inputs.buffer, value, [at + v])
                else:
                    to = T.address_of(self.inputs.buffer[at])
                    call("tensor_put", to, T.address_of(brought.buffer[source]))

    def _bring_weights(self, thread: Any, stage: Any, tap: Any, first: Any) -> None:
        t, tiling, operands = self.threads, self.tiling, self.operands
        row = t.named(divide(first, operands.depth)[0])
        start = (tap * t.const(operands.across) + row) * t.const(operands.columns)
        start = start + self.column_tile * t.const(tiling.block_channels)
        start = t.named(start * t.const(operands.depth))
        with T.unroll(t.const(0), t.const(self.weight_loads)) as i:
            number = i * t.const(tiling.threads) + thread
            r, rest = divide(number, tiling.block_channels * CHUNKS)
            column, chunk = divide(rest, CHUNKS)
            exists = []
            if operands.across % self.rows:
                exists.append(row + r < t.const(operands.across))
            if operands.columns % tiling.block_channels:
                whole = self.column_tile * t.const(tiling.block_channels) + column
                exists.append(whole < t.const(operands.columns))
            inside = (r * t.const(operands.columns) + column) * t.const(CHUNKS) + chunk
            index = start + inside * t.const(operands.chunk)
            at = self.weight_place(stage, r, column, chunk)
            with t.when(r < t.const(self.rows) if self.few_weights else None):
                self._copy(self.weights, at, lambda k: (t.weights, k), index, exists)
