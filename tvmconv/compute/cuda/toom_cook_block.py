"""What a block of the Toom-Cook form does: its place, its slices, its products.

While one slice's sums are multiplied, the next slice is added up to sums, and the inputs of the one
after it are on their way: one barrier a slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.boxes import AxisBoxes, Box
from tvmconv.compute.cuda.registers import Registers, Shared
from tvmconv.compute.cuda.slices import zero_of
from tvmconv.compute.cuda.threads import Threads, divide, split
from tvmconv.compute.cuda.toom_cook_sums import add_outputs, add_sums, find_sums
from tvmconv.compute.element import widen
from tvmconv.compute.points import pick

if TYPE_CHECKING:
    from tvmconv.compute.cuda.toom_cook import CudaToomCook

__all__ = ["Block"]

#: Numbers of a load, and of a side of a thread's square of products.
_VECTOR = 4
#: An input position so far outside that no pass of it exists.
_NOWHERE = -(2**24)


class _AxisPlace:
    """Where a block is along one axis: numbers computed once."""

    def __init__(self, t: Threads, axis: AxisBoxes, slot: Any) -> None:
        phases = axis.phases
        found = t.const(0)
        for phase in phases[1:]:
            found = found + (slot >= t.const(phase.first)).astype(t.index)
        number = t.named(found)
        box = t.named(slot - pick([phase.first for phase in phases], number))
        self.group = t.named(pick([phase.group for phase in phases], number))
        self.member = t.named(pick([phase.member for phase in phases], number))
        steps = [axis.tiles.outputs * axis.in_box(phase.group) for phase in phases]
        begin = pick([phase.start for phase in phases], number) + box * pick(steps, number)
        self.input = t.named(begin)
        stride = axis.tiles.axis.stride
        place = pick([phase.place for phase in phases], number)
        self.output = t.named(place + box * pick([step * stride for step in steps], number))
        self.passes = t.named(pick(axis.passes, self.group))


class Block:
    """Emits what one block of threads does."""

    def __init__(self, form: CudaToomCook, threads: Threads) -> None:
        self.form = form
        self.tiling = form.tiling
        self.threads = threads
        self.work = form.work
        self.plan = form.work.plan
        self.dtype = form.work.accumulate_dtype
        tiling = self.tiling
        self.across = tiling.block_channels // tiling.lanes
        assert tiling.threads == self.across * form.rows // tiling.voxels, tiling
        self.input_chunks = form.inputs * tiling.depth // _VECTOR
        self.weight_chunks = form.weight_points * tiling.depth * tiling.block_channels // _VECTOR
        self.input_loads = -(-self.input_chunks // tiling.threads)
        self.weight_loads = -(-self.weight_chunks // tiling.threads)
        tiles = max(math.prod(box.tiles) for box in form.boxes)
        self.sum_tiles = -(-tiles * tiling.depth // tiling.threads)
        self.load_vector = 1 if self.plan.channels_first else _VECTOR
        while self.plan.in_channels % self.load_vector:
            self.load_vector //= 2
        #: The axes along which a block walks more than once.
        self.walked = [number for number, axis in enumerate(form.axes) if max(axis.passes) > 1]
        self.slices = -(-self.plan.in_channels // tiling.depth)

    def emit(self) -> None:
        """The whole block."""
        t = self.threads
        n, number = t.sample()
        with t.scope("box"):
            self._begin(n, number)
            with t.each_thread() as thread:
                self._start(thread)
                with t.scope("first"):
                    self._store_inputs(thread, t.const(0), self._load_inputs(thread, t.const(0)))
                    weights = self._load_weights(thread, t.const(0))
                    self._store_weights(thread, t.const(0), weights)
            t.barrier()
            with t.each_thread() as thread, t.scope("second"):
                self.sums_of(thread, t.const(0))
                with T.If(self.steps > t.const(1)), T.Then():
                    self._store_inputs(thread, t.const(1), self._load_inputs(thread, t.const(1)))
            t.barrier()
            with T.serial(t.const(0), self.steps) as step:
                with t.each_thread() as thread, t.scope("step"):
                    self._step(thread, step)
                t.barrier()
            self._finish()

    def _step(self, thread: Any, step: Any) -> None:
        """Multiply a slice, add up the next, load the inputs of the one after it."""
        t = self.threads
        stage = divide(step, 2)[1]
        other = t.const(1) - stage
        next_one, after = step + t.const(1), step + t.const(2)
        # The loads come behind the sums, whose registers they need, and have all products to arrive.
        with T.If(next_one < self.steps), T.Then():
            self.sums_of(thread, other)
            weights = self._load_weights(thread, next_one)
        with T.If(after < self.steps), T.Then():
            inputs = self._load_inputs(thread, after)
        self._multiply(thread, stage)
        with T.If(after < self.steps), T.Then():
            self._store_inputs(thread, stage, inputs)
        with T.If(next_one < self.steps), T.Then():
            self._store_weights(thread, other, weights)

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
        slots = split(number, tuple(axis.slots for axis in form.axes))  # type: ignore[arg-type]
        self.places = [_AxisPlace(t, a, t.named(s)) for a, s in zip(form.axes, slots, strict=True)]
        case = t.const(0)
        for place, axis in zip(self.places, form.axes, strict=True):
            case = case * t.const(len(axis.tiles.classes)) + place.group
        self.case = t.named(case)
        counts = [[len(one.scheme.weights) for one in axis.tiles.classes] for axis in form.axes]
        height, width = (
            pick(c, p.group) for c, p in zip(counts[1:], self.places[1:], strict=True)
        )
        self.weight_strides = [t.named(height * width), t.named(width), t.const(1)]
        steps = t.const(self.slices)
        for axis in self.walked:
            steps = steps * self.places[axis].passes
        self.steps = t.named(steps)
        self.column = t.named(t.block[1]) * t.const(tiling.block_channels)
        buffer = t.dynamic(form.offsets[3], self.dtype)
        stages, depth = tiling.stages, tiling.depth
        weights = form.weight_points * depth * tiling.block_channels
        # Inputs lie voxel by voxel, sums channel by channel, weights point by point.
        self.inputs = Shared(buffer, (stages, self._input_room), t.const, form.offsets[0])
        self.sums = Shared(buffer, (stages, depth, form.row), t.const, form.offsets[1])
        self.weights = Shared(buffer, (stages, weights), t.const, form.offsets[2])
        self.products = Shared(
            buffer, (form.columns_together, form.product_row), t.const, form.offsets[0]
        )
        self.totals = t.registers((tiling.voxels, tiling.lanes), self.dtype)
        # Of each load of inputs: its position along the axes that are walked, and its index.
        self.place = t.registers((self.input_loads, len(self.walked) + 1), t.index)
        # Where the thread reads inputs and writes sums.
        self.sum_place = t.registers((self.sum_tiles, 2), t.index)
        # Of each load of weights its index, and where the weights of the thread's rows are.
        self.weight_place = t.registers((self.weight_loads + 1,), t.index)

    @property
    def _input_room(self) -> int:
        return self.form.offsets[1] // self.tiling.stages

    def _start(self, thread: Any) -> None:
        """The thread's places, and its sums = 0."""
        t, tiling = self.threads, self.tiling
        zero = t.const(0)
        nothing = tirx.const(0, self.dtype)
        with T.unroll(zero, t.const(tiling.voxels)) as i, T.unroll(zero, t.const(tiling.lanes)) as j:
            self.totals.store(nothing, thread, i, j)
        with t.scope("places"):
            self.each_box(lambda box: self._find(thread, box))
            self.each_box(lambda box: find_sums(self, box, thread))

    def _find(self, thread: Any, box: Box) -> None:
        """Where a thread's loads are, for one combination."""
        t, tiling, plan = self.threads, self.tiling, self.plan
        for i in range(self.input_loads):
            number = t.const(i * tiling.threads) + thread
            voxel, chunk = divide(number, tiling.depth // _VECTOR)
            along = split(voxel, box.reach)
            position = [p.input + v for p, v in zip(self.places, along, strict=True)]
            inside = [number < t.const(math.prod(box.reach) * tiling.depth // _VECTOR)]
            for number_of, (axis, q) in enumerate(zip(plan.axes, position, strict=True)):
                if number_of not in self.walked:
                    inside += [q >= t.const(0), q < t.const(axis.size)]
            exists = tirx.all(*inside)
            flat = divide_exactly(
                t.flat_input(position, chunk * t.const(_VECTOR)), self.load_vector
            )
            for k, axis_number in enumerate(self.walked):
                q = tirx.Select(exists, position[axis_number], t.const(_NOWHERE))
                self.place.store(q, thread, t.const(i), t.const(k))
            if not self.walked:
                flat = tirx.Select(exists, flat, t.const(-1))
            self.place.store(flat, thread, t.const(i), t.const(len(self.walked)))
        lanes, size = self.form.group.lanes, plan.in_channels
        offset, shape = box.combination.regions[0]
        member = t.const(0)
        for place, count in zip(self.places, shape[:3], strict=True):
            member = member * t.const(count) + place.member
        start = t.const(offset) + member * t.const(math.prod(shape[4:7]) * size * lanes)
        per_point = tiling.depth * tiling.block_channels // _VECTOR
        for i in range(self.weight_loads):
            number = t.const(i * tiling.threads) + thread
            point, rest = divide(number, per_point)
            channel, column = divide(rest, tiling.block_channels // _VECTOR)
            index = t.const(0)
            for p, stride in zip(box.weight_point(point), box.weight_strides, strict=True):
                index = index + p * t.const(stride)
            whole = self.column + column * t.const(_VECTOR)
            at = start + (index * t.const(size) + channel) * t.const(lanes) + whole
            inside = [number < t.const(math.prod(box.weight_points) * per_point)]
            if lanes % tiling.block_channels:
                inside.append(whole < t.const(lanes))
            found = tirx.Select(tirx.all(*inside), divide(at, _VECTOR)[0], t.const(-1))
            self.weight_place.store(found, thread, t.const(i))
        row = divide(thread, self.across)[0] * t.const(tiling.voxels)
        # Rows past the last have products, too, of any weights: nobody reads them.
        last = t.const(math.prod(box.weight_points) - 1)
        own = tirx.min(divide(row, box.rows)[0], last) * t.const(per_point)
        self.weight_place.store(own, thread, t.const(self.weight_loads))

    def _walk(self, step: Any) -> tuple[list[Any], Any]:
        """How far along the axes that are walked a step is, and its first channel."""
        t = self.threads
        rest, number = divide(step, self.slices)
        found = []
        for axis in reversed(self.walked):
            if axis == self.walked[0]:
                found.append(rest)
            else:
                passes = self.places[axis].passes
                found.append(tirx.truncmod(rest, passes))
                rest = tirx.truncdiv(rest, passes)
        walked = [t.named(one) for one in reversed(found)]
        return walked, t.named(number * t.const(self.tiling.depth))

    def _load_inputs(self, thread: Any, step: Any) -> Any:
        """The inputs of a slice, as they are stored, in registers."""
        t, plan, vector = self.threads, self.plan, self.load_vector
        walked, first = self._walk(step)
        moved = [t.const(0)] * 3
        for number, far in zip(self.walked, walked, strict=True):
            moved[number] = far
        offset = t.named(divide_exactly(t.flat_input(moved, first), vector))
        stride = math.prod(axis.size for axis in plan.axes) if plan.channels_first else 1
        held = T.sblock_alloc_buffer(
            (t.const(self.input_loads * _VECTOR),), t.input_dtype, scope="local"
        )
        for i in range(self.input_loads):
            inside = []
            for k, (number, far) in enumerate(zip(self.walked, walked, strict=True)):
                q = self.place.load(thread, t.const(i), t.const(k)) + far
                inside += [q >= t.const(0), q < t.const(plan.axes[number].size)]
            flat = self.place.load(thread, t.const(i), t.const(len(self.walked)))
            if not self.walked:
                inside.append(flat >= t.const(0))
            chunk = divide(t.const(i * self.tiling.threads) + thread, self.tiling.depth // _VECTOR)[1]
            for u in range(_VECTOR // vector):
                needed = list(inside)
                if plan.in_channels % self.tiling.depth:
                    channel = first + chunk * t.const(_VECTOR) + t.const(u * vector)
                    needed.append(channel < t.const(plan.in_channels))
                at = (flat + offset) * t.const(vector) + t.const(u * vector * stride)
                self._copy(
                    held, i * _VECTOR + u * vector, vector, needed,
                    lambda v, at=at: t.x[t.in_sample(self.n, at + v)], t.input_dtype,
                )  # fmt: skip
        return held

    def _load_weights(self, thread: Any, step: Any) -> Any:
        """The weights of a slice in registers."""
        t, tiling = self.threads, self.tiling
        lanes, size = self.form.group.lanes, self.plan.in_channels
        walked, first = self._walk(step)
        index = t.const(0)
        for number, far in zip(self.walked, walked, strict=True):
            index = index + far * self.weight_strides[number]
        offset = (index * t.const(size) + first) * t.const(lanes // _VECTOR)
        offset = t.named(offset)
        held = T.sblock_alloc_buffer(
            (t.const(self.weight_loads * _VECTOR),), self.dtype, scope="local"
        )
        for i in range(self.weight_loads):
            place = self.weight_place.load(thread, t.const(i))
            needed = [place >= t.const(0)]
            if size % tiling.depth:
                # Channels past the last meet sums that are zero: their weights must be finite.
                number = t.const(i * tiling.threads) + thread
                rest = divide(number, tiling.block_channels // _VECTOR)[0]
                needed.append(first + divide(rest, tiling.depth)[1] < t.const(size))
            at = (place + offset) * t.const(_VECTOR)
            self._copy(
                held, i * _VECTOR, _VECTOR, needed,
                lambda v, at=at: t.weights[at + v], self.dtype,
            )  # fmt: skip
        return held

    def _copy(
        self,
        to: Any,
        at: int,
        vector: int,
        needed: list[Any],
        value: Callable[[Any], Any],
        dtype: str,
    ) -> None:
        """A vector into registers, zeros where a condition fails."""
        t = self.threads

        def put(of: Callable[[Any], Any]) -> None:
            with T.vectorized(t.const(0), t.const(vector)) as v:
                T.buffer_store(to, of(v), [t.const(at) + v])

        t.choose(needed, lambda: put(value), lambda: put(lambda _: zero_of(dtype)))

    def _store_inputs(self, thread: Any, stage: Any, held: Any) -> None:
        """From registers to shared memory, widened."""
        for i in range(self.input_loads):
            self._share(
                thread, i, self.input_chunks, self.inputs, stage,
                lambda v, i=i: widen(
                    held[self.threads.const(i * _VECTOR) + v], self.work.input_dtype, self.dtype
                ),
            )  # fmt: skip

    def _store_weights(self, thread: Any, stage: Any, held: Any) -> None:
        for i in range(self.weight_loads):
            self._share(
                thread, i, self.weight_chunks, self.weights, stage,
                lambda v, i=i: held[self.threads.const(i * _VECTOR) + v],
            )  # fmt: skip

    def _share(
        self, thread: Any, i: int, chunks: int, to: Shared, stage: Any, value: Callable[[Any], Any]
    ) -> None:
        t, threads = self.threads, self.tiling.threads
        number = t.const(i * threads) + thread
        whole = (i + 1) * threads <= chunks
        with t.when(None if whole else number < t.const(chunks)):
            with T.vectorized(t.const(0), t.const(_VECTOR)) as v:
                to.store(value(v), stage, number * t.const(_VECTOR) + v)

    def sums_of(self, thread: Any, stage: Any) -> None:
        """Add up the inputs of a slice to the sums of the box's tiles."""
        self.each_box(lambda box: add_sums(self, box, thread, stage))

    def _own(self, thread: Any) -> tuple[Any, Any, Any]:
        """Row and column of a thread's square, and whether it takes its halves in turn.

        Every other four rows of threads do: else they would read from the same banks.
        """
        y, x = divide(thread, self.across)
        return y, x, divide(divide(y, _VECTOR)[0], 2)[1]

    def _half(self, number: int, halves: int, turned: Any) -> Any:
        t = self.threads
        if halves == 1:
            return t.const(0)
        return turned if number == 0 else t.const(1) - turned

    def _multiply(self, thread: Any, stage: Any) -> None:
        """The slice in shared memory: a thread's square of products for each channel."""
        t, tiling = self.threads, self.tiling
        c = t.const
        halves = tiling.voxels // _VECTOR, tiling.lanes // _VECTOR
        left = Registers.local(t, (tiling.voxels,), self.dtype)
        right = Registers.local(t, (tiling.lanes,), self.dtype)
        y, x, turned = self._own(thread)
        own = self.weight_place.load(thread, c(self.weight_loads))
        half = tiling.block_channels // halves[1] // _VECTOR
        with T.unroll(c(0), c(tiling.depth)) as k:
            for i in range(halves[0]):
                row = (y * c(halves[0]) + self._half(i, halves[0], turned)) * c(_VECTOR)
                with T.vectorized(c(0), c(_VECTOR)) as v:
                    left.store(self.sums.load(stage, k, row + v), thread, c(i * _VECTOR) + v)
            for j in range(halves[1]):
                column = own + k * c(tiling.block_channels // _VECTOR)
                column = (column + self._half(j, halves[1], turned) * c(half) + x) * c(_VECTOR)
                with T.vectorized(c(0), c(_VECTOR)) as v:
                    right.store(self.weights.load(stage, column + v), thread, c(j * _VECTOR) + v)
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
        halves = tiling.voxels // _VECTOR, tiling.lanes // _VECTOR
        y, x, turned = self._own(thread)
        j, first = divmod(one * together, _VECTOR)
        for v in range(together):
            column = x * t.const(together) + t.const(v)
            for i in range(halves[0]):
                row = (y * t.const(halves[0]) + self._half(i, halves[0], turned)) * t.const(_VECTOR)
                for u in range(_VECTOR):
                    at = t.const(i * _VECTOR + u)
                    held = [
                        self.totals.load(thread, at, t.const(half * _VECTOR + first + v))
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
        j, first = divide(number * t.const(count), _VECTOR)
        half = tiling.block_channels // (tiling.lanes // _VECTOR)
        return self.column + j * t.const(half) + x * t.const(_VECTOR) + first + v


def divide_exactly(value: Any, by: int) -> Any:
    """A multiple of ``by`` that may be negative, divided."""
    return value if by == 1 else tirx.truncdiv(value, tirx.IntImm(str(value.ty), by))
