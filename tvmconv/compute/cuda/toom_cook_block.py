"""What a block of the Toom-Cook form does: its place, its steps, its products.

While one slice's sums are multiplied, the next slice is added up to sums, and the inputs of the one
after it are on their way: one barrier a slice.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.boxes import Box
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.threads import Threads, divide, split
from tvmconv.compute.cuda.toom_cook_slices import VECTOR, AxisPlace, BoxSlices
from tvmconv.compute.cuda.toom_cook_sums import add_outputs, add_sums, find_sums
from tvmconv.compute.points import pick

if TYPE_CHECKING:
    from tvmconv.compute.cuda.toom_cook import CudaToomCook

__all__ = ["Block"]


class Block(BoxSlices):
    """Emits what one block of threads does."""

    def __init__(self, form: CudaToomCook, threads: Threads) -> None:
        super().__init__(form, threads)
        tiling = self.tiling
        self.across = tiling.block_channels // tiling.lanes
        assert form.whole, tiling
        assert tiling.threads == self.across * form.rows // tiling.voxels, tiling
        tiles = max(math.prod(box.tiles) for box in form.boxes)
        self.sum_tiles = -(-tiles * tiling.depth // tiling.threads)

    def emit(self) -> None:
        """The whole block."""
        t = self.threads
        zero, one = t.const(0), t.const(1)
        n, number = t.sample()
        with t.scope("box"):
            self._begin(n, number)
            with t.each_thread() as thread:
                self._start(thread)
                with t.scope("first"):
                    held = self.bring_inputs(thread, zero, zero)
                    self.put_inputs(thread, zero, held)
                    self.put_weights(thread, zero, self.bring_weights(thread, zero, zero))
                    self.arrive()
            t.barrier()
            with t.each_thread() as thread, t.scope("second"):
                self._sum(thread, zero)
                with T.If(self.steps > one), T.Then():
                    self.put_inputs(thread, one, self.bring_inputs(thread, one, one))
                self.arrive()
            t.barrier()
            with T.serial(zero, self.steps) as step:
                with t.each_thread() as thread, t.scope("step"):
                    self._step(thread, step)
                t.barrier()
            self._finish()

    def _step(self, thread: Any, step: Any) -> None:
        """Multiply a slice, add up the next, bring the inputs of the one after it."""
        t = self.threads
        stage = divide(step, 2)[1]
        other = t.const(1) - stage
        next_one, after = step + t.const(1), step + t.const(2)
        # Loads come behind the sums, whose registers they need, and have all products to arrive;
        # copies need none.
        if not self.tiling.copied:
            with T.If(next_one < self.steps), T.Then():
                self._sum(thread, other)
        with T.If(next_one < self.steps), T.Then():
            weights = self.bring_weights(thread, next_one, other)
        with T.If(after < self.steps), T.Then():
            inputs = self.bring_inputs(thread, after, stage)
        if self.tiling.copied:
            with T.If(next_one < self.steps), T.Then():
                self._sum(thread, other)
        self._multiply(thread, stage)
        with T.If(after < self.steps), T.Then():
            self.put_inputs(thread, stage, inputs)
        with T.If(next_one < self.steps), T.Then():
            self.put_weights(thread, other, weights)
        self.arrive()

    def each_box(self, body: Callable[[Box], None]) -> None:
        """Statements for the block's combination of classes: one piece of code for each."""
        boxes = self.form.boxes

        def chain(number: int) -> None:
            if number == len(boxes) - 1:
                body(boxes[number])
                return
            with T.If(self.case == self.threads.const(number)):
                with T.Then():
                    body(boxes[number])
                with T.Else():
                    chain(number + 1)

        chain(0)

    def _begin(self, n: Any, number: Any) -> None:
        t, form, tiling = self.threads, self.form, self.tiling
        self.n = t.named(n)
        d, h, w = (axis.slots for axis in form.axes)
        slots = split(number, (d, h, w))
        self.places = [AxisPlace(t, a, t.named(s)) for a, s in zip(form.axes, slots, strict=True)]
        case = t.const(0)
        for place, axis in zip(self.places, form.axes, strict=True):
            case = case * t.const(len(axis.tiles.classes)) + place.group
        self.case = t.named(case)
        counts = [[len(one.scheme.weights) for one in axis.tiles.classes] for axis in form.axes]
        height, width = (pick(c, p.group) for c, p in zip(counts[1:], self.places[1:], strict=True))
        self.weight_strides = [t.named(height * width), t.named(width), t.const(1)]
        steps = t.const(self.slices)
        for axis_number in self.walked:
            steps = steps * self.places[axis_number].passes
        self.steps = t.named(steps)
        self.column = t.named(t.block[1]) * t.const(tiling.block_channels)
        # Inputs lie voxel by voxel, sums channel by channel, weights point by point. When all is
        # multiplied the products take their place.
        parts = t.dynamic(form.shared_shapes, self.dtype)
        self.inputs, self.sums, self.weights = parts[:3]
        shape = (form.columns_together, form.product_row)
        self.products = dataclasses.replace(self.inputs, shape=shape)
        self.totals = t.registers((tiling.voxels, tiling.lanes), self.dtype)
        # Where the thread reads inputs and writes sums.
        self.sum_place = t.registers((self.sum_tiles, 2), t.index)
        # Where the weights of the thread's rows are.
        self.point_place = t.registers((1,), t.index)
        self.allocate_places()

    def _start(self, thread: Any) -> None:
        """The thread's places, and its sums = 0."""
        t, tiling = self.threads, self.tiling
        zero = t.const(0)
        nothing = tirx.const(0, self.dtype)
        with (
            T.unroll(zero, t.const(tiling.voxels)) as i,
            T.unroll(zero, t.const(tiling.lanes)) as j,
        ):
            self.totals.store(nothing, thread, i, j)
        with t.scope("places"):
            self.each_box(lambda box: self._find(thread, box))

    def _find(self, thread: Any, box: Box) -> None:
        t, tiling = self.threads, self.tiling
        self.find_loads(thread, box)
        find_sums(self, box, thread)
        row = divide(thread, self.across)[0] * t.const(tiling.voxels)
        # Rows past the last have products, too, of any weights: nobody reads them.
        last = t.const(math.prod(box.weight_points) - 1)
        own = tirx.min(divide(row, box.rows)[0], last)
        per_point = tiling.depth * tiling.block_channels // VECTOR
        self.point_place.store(own * t.const(per_point), thread, t.const(0))

    def _sum(self, thread: Any, stage: Any) -> None:
        """Add up the inputs of a slice to the sums of the box's tiles."""
        self.each_box(lambda box: add_sums(self, box, thread, stage))

    def _own(self, thread: Any) -> tuple[Any, Any, Any]:
        """Row and column of a thread's square, and whether it takes its halves in turn.

        Every other four rows of threads do: else they would read from the same banks.
        """
        y, x = divide(thread, self.across)
        return y, x, divide(divide(y, VECTOR)[0], 2)[1]

    def _half(self, number: int, halves: int, turned: Any) -> Any:
        t = self.threads
        if halves == 1:
            return t.const(0)
        return turned if number == 0 else t.const(1) - turned

    def _multiply(self, thread: Any, stage: Any) -> None:
        """The slice in shared memory: a thread's square of products for each channel."""
        t, tiling = self.threads, self.tiling
        c = t.const
        halves = tiling.voxels // VECTOR, tiling.lanes // VECTOR
        left = Registers.local(t, (tiling.voxels,), self.dtype)
        right = Registers.local(t, (tiling.lanes,), self.dtype)
        y, x, turned = self._own(thread)
        own = self.point_place.load(thread, c(0))
        half = tiling.block_channels // halves[1] // VECTOR
        with T.unroll(c(0), c(tiling.depth)) as k:
            for i in range(halves[0]):
                row = (y * c(halves[0]) + self._half(i, halves[0], turned)) * c(VECTOR)
                with T.vectorized(c(0), c(VECTOR)) as v:
                    left.store(self.sums.load(stage, k, row + v), thread, c(i * VECTOR) + v)
            for j in range(halves[1]):
                column = own + k * c(tiling.block_channels // VECTOR)
                column = (column + self._half(j, halves[1], turned) * c(half) + x) * c(VECTOR)
                with T.vectorized(c(0), c(VECTOR)) as v:
                    right.store(self.weights.load(stage, column + v), thread, c(j * VECTOR) + v)
            with T.unroll(c(0), c(tiling.voxels)) as i, T.unroll(c(0), c(tiling.lanes)) as j:
                product = left.load(thread, i) * right.load(thread, j)
                self.totals.store(self.totals.load(thread, i, j) + product, thread, i, j)

    def _finish(self) -> None:
        """The products through shared memory, some columns at a time, to the outputs."""
        t, tiling = self.threads, self.tiling
        together = self.form.columns_together // self.across
        passes = tiling.block_channels // self.form.columns_together
        with T.serial(t.const(0), t.const(passes)) as number:
            with t.each_thread() as thread, t.scope("products"):
                for one in range(passes):
                    with t.when(number == t.const(one) if passes > 1 else None):
                        self._share_products(thread, one, together)
            t.barrier()
            with t.each_thread() as thread, t.scope("outputs"):
                self.each_box(lambda box: add_outputs(self, box, thread, number))
            t.barrier()

    def _share_products(self, thread: Any, one: int, together: int) -> None:
        t, tiling = self.threads, self.tiling
        halves = tiling.voxels // VECTOR, tiling.lanes // VECTOR
        y, x, turned = self._own(thread)
        j, first = divmod(one * together, VECTOR)
        for v in range(together):
            column = x * t.const(together) + t.const(v)
            for i in range(halves[0]):
                row = (y * t.const(halves[0]) + self._half(i, halves[0], turned)) * t.const(VECTOR)
                for u in range(VECTOR):
                    at = t.const(i * VECTOR + u)
                    held = [
                        self.totals.load(thread, at, t.const(half * VECTOR + first + v))
                        for half in ([j] if halves[1] == 1 else [j, 1 - j])
                    ]
                    value = held[0]
                    if len(held) == 2:
                        value = tirx.Select(turned == t.const(0), held[0], held[1])
                    self.products.store(value, column, row + t.const(u))

    def column_of(self, together: Any, number: Any) -> Any:
        """The filter of a column among those that are in shared memory in one pass."""
        t, tiling = self.threads, self.tiling
        count = self.form.columns_together // self.across
        x, v = divide(together, count)
        j, first = divide(number * t.const(count), VECTOR)
        half = tiling.block_channels // (tiling.lanes // VECTOR)
        return self.column + j * t.const(half) + x * t.const(VECTOR) + first + v
