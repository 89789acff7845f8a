"""Slices that go through registers: one is multiplied from shared memory, the next is on its way.

What a slice looks like in shared memory, and how it is multiplied, is the forms' own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.cuda.walk import Walk, Walked
from tvmconv.compute.lanes import Group
from tvmconv.compute.workload import Workload

__all__ = ["COLUMNS", "Sliced", "Slices", "columns_group", "zero_of"]

COLUMNS = 16
"""Packed weights have a multiple of so many columns."""


class Sliced(Walked, Protocol):
    """The forms that are cut into such slices."""

    @property
    def group(self) -> Group:
        """The packed columns."""


def columns_group(folded: Workload, multiple: int = COLUMNS) -> Group:
    """All columns side by side, in whole vectors."""
    filters = folded.plan.filters
    return Group(0, filters, 1, -(-filters // multiple) * multiple, 0, 0)


class Slices(Walk):
    """Emits what one block of threads does.

    Parameters
    ----------
    form, threads
        The form, and the kernel that is built.
    dtype : str
        Of a slice in shared memory.
    vector : int
        Weights in one load, and most inputs in one.
    """

    def __init__(self, form: Sliced, threads: Threads, dtype: str, vector: int) -> None:
        tiling, plan = form.tiling, form.folded.plan
        load_vector = 1 if plan.channels_first else vector
        while plan.in_channels % load_vector:
            # TVM has short vectors of every dtype but this one.
            load_vector = 1 if dtype == "bfloat16" else load_vector // 2
        number = tiling.block_voxels * tiling.depth // load_vector
        self.few_inputs = number < tiling.threads
        assert self.few_inputs or number % tiling.threads == 0, tiling
        super().__init__(form, threads, max(1, number // tiling.threads), load_vector)
        self.form = form
        self.dtype = dtype
        self.vector = vector
        self.load_vector = load_vector
        vectors = tiling.depth * tiling.block_channels // self.vector
        self.weight_loads = -(-vectors // tiling.threads)
        self.few_weights = vectors % tiling.threads != 0

    @abstractmethod
    def allocate(self) -> None:
        """Emit the slices in shared memory and the sums in registers."""

    @abstractmethod
    def start(self, thread: Any) -> None:
        """Set a thread's sums."""

    @abstractmethod
    def put_inputs(self, thread: Any, stage: Any, inputs: Any) -> None:
        """From registers to shared memory: a thread's inputs."""

    @abstractmethod
    def put_weights(self, stage: Any, channel: Any, column: Any, vector: Any) -> None:
        """From registers to shared memory: a vector of weights (a function of its element)."""

    @abstractmethod
    def multiply(self, thread: Any, stage: Any) -> None:
        """Add the products of a slice to the sums."""

    @abstractmethod
    def finish(self) -> None:
        """Store the sums."""

    def emit(self) -> None:
        """The whole block."""
        t = self.threads
        with self.tile():
            self.allocate()
            with t.each_thread() as thread:
                self.begin(thread)
                self.start(thread)
                with T.If(self.steps > t.const(0)), T.Then(), t.scope("first"):
                    self._store(thread, t.const(0), self._load(thread))
            t.barrier()
            with T.serial(t.const(0), self.steps) as step:
                with t.each_thread() as thread, t.scope("step"):
                    self.advance(thread)
                    more = step + t.const(1) < self.steps
                    stage = divide(step, 2)[1]
                    with T.If(more), T.Then():
                        staged = self._load(thread)
                    self.multiply(thread, stage)
                    with T.If(more), T.Then():
                        self._store(thread, t.const(1) - stage, staged)
                t.barrier()
            self.finish()

    def load_place(self, thread: Any, i: Any) -> tuple[Any, Any]:
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
        kept = t.input_dtype
        inputs = T.sblock_alloc_buffer(
            (t.const(self.loads * self.load_vector),), kept, scope="local"
        )
        tap, first = self.tap(thread), self.first(thread)
        moved = self.moved(tap, first)
        with T.unroll(t.const(0), t.const(self.loads)) as i:
            _, channel = self.load_place(thread, i)
            inside = self.reached(thread, i, tap)
            if self.plan.in_channels % tiling.depth:
                inside.append(first + channel < t.const(self.plan.in_channels))
            if self.few_inputs:
                inside.append(self.is_load(thread, i))
            at = i * t.const(self.load_vector)
            with T.If(tirx.all(*inside)):
                with T.Then(), T.vectorized(t.const(0), t.const(self.load_vector)) as v:
                    index = self.input_index(thread, i, moved) + v
                    T.buffer_store(inputs, t.x[t.in_sample(self.n, index)], [at + v])
                with T.Else(), T.vectorized(t.const(0), t.const(self.load_vector)) as v:
                    T.buffer_store(inputs, zero_of(kept), [at + v])
        return inputs, self._load_weights(thread, tap, first)

    def is_load(self, thread: Any, i: Any) -> Any:
        """Whether a load is one of the tile's: tiles may be smaller than the threads."""
        t, tiling = self.threads, self.tiling
        number = i * t.const(tiling.threads) + thread
        return number < t.const(tiling.block_voxels * tiling.depth // self.load_vector)

    def _weight_place(self, thread: Any, i: Any) -> tuple[Any, Any]:
        """Channel of the slice and first column of the tile of a load of weights."""
        t, tiling = self.threads, self.tiling
        number = i * t.const(tiling.threads) + thread
        channel, vector = divide(number, tiling.block_channels // self.vector)
        return channel, vector * t.const(self.vector)

    def _load_weights(self, thread: Any, tap: list[Any], first: Any) -> Any:
        t, tiling = self.threads, self.tiling
        size = self.weight_loads * self.vector
        weights = T.sblock_alloc_buffer((t.const(size),), self.dtype, scope="local")
        start = self.packed_tap(tap) * t.const(self.plan.in_channels) + first
        start = start * t.const(self.form.group.lanes)
        start = start + self.column_tile * t.const(tiling.block_channels)
        start = t.named(divide(start, self.vector)[0]) * t.const(self.vector)
        with T.unroll(t.const(0), t.const(self.weight_loads)) as i:
            channel, column = self._weight_place(thread, i)
            needed = []
            if self.plan.in_channels % tiling.depth or self.few_weights:
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
                partial(self._copy, weights, at, lambda _v, _: zero_of(self.dtype), index),
            )
        return weights

    def _copy(self, to: Any, at: Any, value: Callable[[Any, Any], Any], index: Any) -> None:
        """A vector of values into registers."""
        t = self.threads
        with T.vectorized(t.const(0), t.const(self.vector)) as v:
            T.buffer_store(to, value(v, index), [at + v])

    def _store(self, thread: Any, stage: Any, staged: tuple[Any, Any]) -> None:
        """From registers to shared memory."""
        t, tiling = self.threads, self.tiling
        inputs, weights = staged
        self.put_inputs(thread, stage, inputs)
        with T.unroll(t.const(0), t.const(self.weight_loads)) as i:
            channel, column = self._weight_place(thread, i)
            at = i * t.const(self.vector)
            with t.when(channel < t.const(tiling.depth) if self.few_weights else None):
                self.put_weights(stage, channel, column, lambda v: weights[at + v])


def zero_of(dtype: str) -> Any:
    """A zero of a dtype that may be bfloat16, of which TVM makes no constant."""
    if dtype == "bfloat16":
        return tirx.reinterpret(dtype, tirx.const(0, "uint16"))
    return tirx.const(0, dtype)
