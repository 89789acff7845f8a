"""How slices of inputs and weights come to shared memory, for a block of the Toom-Cook form.

Through registers, or by copies past them (from sm_80 on), where inputs lie side by side in 16
bytes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.boxes import AxisBoxes, Box
from tvmconv.compute.cuda.registers import Shared
from tvmconv.compute.cuda.slices import zero_of
from tvmconv.compute.cuda.tensor import call
from tvmconv.compute.cuda.threads import Threads, divide, split
from tvmconv.compute.element import widen
from tvmconv.compute.points import pick

if TYPE_CHECKING:
    from tvmconv.compute.cuda.toom_cook import CudaToomCook

__all__ = ["VECTOR", "AxisPlace", "BoxSlices"]

#: Numbers of a load, and of a side of a thread's square of products.
VECTOR = 4
#: An input position so far outside that no pass of it exists.
_NOWHERE = -(2**24)


class AxisPlace:
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


class BoxSlices:
    """Brings the slices of one block.

    Parameters
    ----------
    form, threads
        The form, and the kernel that is built.
    """

    places: list[AxisPlace]
    n: Any
    column: Any
    inputs: Shared
    weights: Shared
    weight_strides: list[Any]

    def __init__(self, form: CudaToomCook, threads: Threads) -> None:
        self.form, self.tiling, self.threads = form, form.tiling, threads
        self.work, self.plan = form.work, form.work.plan
        self.dtype = form.work.accumulate_dtype
        tiling = self.tiling
        self.input_chunks = form.inputs * tiling.depth // VECTOR
        self.weight_chunks = form.weight_points * tiling.depth * tiling.block_channels // VECTOR
        self.input_loads = -(-self.input_chunks // tiling.threads)
        self.weight_loads = -(-self.weight_chunks // tiling.threads)
        self.load_vector = 1 if self.plan.channels_first else VECTOR
        while self.plan.in_channels % self.load_vector:
            self.load_vector //= 2
        whole = self.load_vector == VECTOR and self.work.input_dtype == self.dtype
        self.copies_inputs = bool(tiling.copied) and whole
        #: The axes along which a block walks more than once.
        self.walked = [number for number, axis in enumerate(form.axes) if max(axis.passes) > 1]
        self.slices = -(-self.plan.in_channels // tiling.depth)

    def allocate_places(self) -> None:
        """Emit the registers that say where a thread's loads are."""
        t = self.threads
        # Of each load of inputs: its position along the axes that are walked, and its index.
        self.place = t.registers((self.input_loads, len(self.walked) + 1), t.index)
        self.weight_place = t.registers((self.weight_loads,), t.index)

    def find_loads(self, thread: Any, box: Box) -> None:
        """Where a thread's loads are, for one combination."""
        self._find_inputs(thread, box)
        self._find_weights(thread, box)

    def _find_inputs(self, thread: Any, box: Box) -> None:
        t, tiling, plan = self.threads, self.tiling, self.plan
        for i in range(self.input_loads):
            number = t.const(i * tiling.threads) + thread
            voxel, chunk = divide(number, tiling.depth // VECTOR)
            along = split(voxel, box.reach)
            position = [p.input + v for p, v in zip(self.places, along, strict=True)]
            inside = [number < t.const(math.prod(box.reach) * tiling.depth // VECTOR)]
            for number_of, (axis, q) in enumerate(zip(plan.axes, position, strict=True)):
                if number_of not in self.walked:
                    inside += [q >= t.const(0), q < t.const(axis.size)]
            exists = tirx.all(*inside)
            flat = _divide_exactly(
                t.flat_input(position, chunk * t.const(VECTOR)), self.load_vector
            )
            for k, axis_number in enumerate(self.walked):
                q = tirx.Select(exists, position[axis_number], t.const(_NOWHERE))
                self.place.store(q, thread, t.const(i), t.const(k))
            if not self.walked:
                flat = tirx.Select(exists, flat, t.const(-1))
            self.place.store(flat, thread, t.const(i), t.const(len(self.walked)))

    def _find_weights(self, thread: Any, box: Box) -> None:
        t, tiling = self.threads, self.tiling
        lanes, size = self.form.group.lanes, self.plan.in_channels
        offset, shape = box.combination.regions[0]
        member = t.const(0)
        for place, count in zip(self.places, shape[:3], strict=True):
            member = member * t.const(count) + place.member
        start = t.const(offset) + member * t.const(math.prod(shape[4:7]) * size * lanes)
        per_point = tiling.depth * tiling.block_channels // VECTOR
        for i in range(self.weight_loads):
            number = t.const(i * tiling.threads) + thread
            point, rest = divide(number, per_point)
            channel, column = divide(rest, tiling.block_channels // VECTOR)
            index = t.const(0)
            for p, stride in zip(box.weight_point(point), box.weight_strides, strict=True):
                index = index + p * t.const(stride)
            whole = self.column + column * t.const(VECTOR)
            at = start + (index * t.const(size) + channel) * t.const(lanes) + whole
            inside = [number < t.const(math.prod(box.weight_points) * per_point)]
            if lanes % tiling.block_channels:
                inside.append(whole < t.const(lanes))
            found = tirx.Select(tirx.all(*inside), divide(at, VECTOR)[0], t.const(-1))
            self.weight_place.store(found, thread, t.const(i))

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

    def bring_inputs(self, thread: Any, step: Any, stage: Any) -> Any:
        """Begin to bring the inputs of a step; what goes through registers is returned."""
        t, plan, vector = self.threads, self.plan, self.load_vector
        walked, first = self._walk(step)
        moved = [t.const(0)] * 3
        for number, far in zip(self.walked, walked, strict=True):
            moved[number] = far
        offset = t.named(_divide_exactly(t.flat_input(moved, first), vector))
        stride = math.prod(axis.size for axis in plan.axes) if plan.channels_first else 1
        held = self._held(self.input_loads, t.input_dtype, self.copies_inputs)
        for i in range(self.input_loads):
            inside = []
            for k, (number, far) in enumerate(zip(self.walked, walked, strict=True)):
                q = self.place.load(thread, t.const(i), t.const(k)) + far
                inside += [q >= t.const(0), q < t.const(plan.axes[number].size)]
            flat = self.place.load(thread, t.const(i), t.const(len(self.walked)))
            if not self.walked:
                inside.append(flat >= t.const(0))
            chunk = divide(t.const(i * self.tiling.threads) + thread, self.tiling.depth // VECTOR)
            for u in range(VECTOR // vector):
                needed = list(inside)
                if plan.in_channels % self.tiling.depth:
                    channel = first + chunk[1] * t.const(VECTOR) + t.const(u * vector)
                    needed.append(channel < t.const(plan.in_channels))
                index = self._wide(flat + offset)
                at = index * tirx.IntImm(str(index.ty), vector)
                at = t.in_sample(self.n, at + t.const(u * vector * stride))
                if held is None:
                    with self._piece(thread, i, self.input_chunks):
                        self._copy(self.inputs, thread, i, stage, t.x, at, needed)
                    continue
                self._load(held, i * VECTOR + u * vector, vector, needed, t.x, at, t.input_dtype)
        return held

    def _wide(self, index: Any) -> Any:
        """The index of something that exists, 64 bits wide.

        Without a sign: nvcc would keep the 64 bits of each of its terms in registers.
        """
        if self.threads.serial or str(index.ty) != "int32":
            return index
        return index.astype("uint32").astype("int64")

    def bring_weights(self, thread: Any, step: Any, stage: Any) -> Any:
        """The same for the weights."""
        t, tiling = self.threads, self.tiling
        lanes, size = self.form.group.lanes, self.plan.in_channels
        walked, first = self._walk(step)
        index = t.const(0)
        for number, far in zip(self.walked, walked, strict=True):
            index = index + far * self.weight_strides[number]
        offset = t.named((index * t.const(size) + first) * t.const(lanes // VECTOR))
        held = self._held(self.weight_loads, self.dtype, bool(tiling.copied))
        for i in range(self.weight_loads):
            place = self.weight_place.load(thread, t.const(i))
            exists = place >= t.const(0)
            needed = []
            if size % tiling.depth:
                # Channels past the last meet sums that are zero: their weights must be finite.
                number = t.const(i * tiling.threads) + thread
                rest = divide(number, tiling.block_channels // VECTOR)[0]
                needed.append(first + divide(rest, tiling.depth)[1] < t.const(size))
            wide = self._wide(place + offset)
            at = wide * tirx.IntImm(str(wide.ty), VECTOR)
            if held is None:
                with t.when(exists):
                    self._copy(self.weights, thread, i, stage, t.weights, at, needed)
                continue
            self._load(held, i * VECTOR, VECTOR, [exists, *needed], t.weights, at, self.dtype)
        return held

    def put_inputs(self, thread: Any, stage: Any, held: Any) -> None:
        """From registers to shared memory, widened; nothing where they are copied."""
        dtype = self.work.input_dtype
        for i in range(self.input_loads if held is not None else 0):
            self._put(thread, i, self.input_chunks, self.inputs, stage, held, dtype)

    def put_weights(self, thread: Any, stage: Any, held: Any) -> None:
        """The same for the weights."""
        for i in range(self.weight_loads if held is not None else 0):
            self._put(thread, i, self.weight_chunks, self.weights, stage, held, self.dtype)

    def arrive(self) -> None:
        """Wait for the thread's copies."""
        if self.tiling.copied and not self.threads.serial:
            call("copy_commit")
            call("copy_wait<0>")

    def _held(self, loads: int, dtype: str, copied: bool) -> Any:
        if copied:
            return None
        return T.sblock_alloc_buffer((self.threads.const(loads * VECTOR),), dtype, scope="local")

    def _load(
        self,
        to: Any,
        at: int,
        vector: int,
        needed: list[Any],
        source: Any,
        place: Any,
        dtype: str,
    ) -> None:
        """A vector into registers, zeros where a condition fails."""
        t = self.threads

        def put(exists: bool) -> None:
            with T.vectorized(t.const(0), t.const(vector)) as v:
                value = source[place + v] if exists else zero_of(dtype)
                T.buffer_store(to, value, [t.const(at) + v])

        t.choose(needed, lambda: put(True), lambda: put(False))

    def _copy(
        self,
        to: Shared,
        thread: Any,
        i: int,
        stage: Any,
        source: Any,
        place: Any,
        needed: list[Any],
    ) -> None:
        """A vector to shared memory past the registers, zeros where a condition fails."""
        t = self.threads
        number = (t.const(i * self.tiling.threads) + thread) * t.const(VECTOR)
        if not t.serial:
            exists: Any = tirx.IntImm("int32", 1)
            if needed:
                # What does not exist is not read, but its address is still one of the buffer's.
                inside = tirx.all(*needed)
                exists = tirx.Select(inside, exists, tirx.IntImm("int32", 0))
                place = tirx.Select(inside, place, tirx.IntImm(str(place.ty), 0))
            target = T.address_of(to.buffer[to.at(stage, number)])
            call("copy_async", target, T.address_of(source[place]), exists)
            return

        def put(exists: bool) -> None:
            with T.serial(t.const(0), t.const(VECTOR)) as v:
                value = source[place + v] if exists else tirx.const(0, self.dtype)
                to.store(value, stage, number + v)

        t.choose(needed, lambda: put(True), lambda: put(False))

    def _piece(self, thread: Any, i: int, chunks: int) -> Any:
        """Statements for a load that is one of a slice's: its number may be smaller."""
        t, threads = self.threads, self.tiling.threads
        whole = (i + 1) * threads <= chunks
        number = t.const(i * threads) + thread
        return t.when(None if whole else number < t.const(chunks))

    def _put(
        self, thread: Any, i: int, chunks: int, to: Shared, stage: Any, held: Any, dtype: str
    ) -> None:
        t = self.threads
        number = t.const(i * self.tiling.threads) + thread
        with self._piece(thread, i, chunks), T.vectorized(t.const(0), t.const(VECTOR)) as v:
            value = widen(held[t.const(i * VECTOR) + v], dtype, self.dtype)
            to.store(value, stage, number * t.const(VECTOR) + v)


def _divide_exactly(value: Any, by: int) -> Any:
    """A multiple of ``by`` that may be negative, divided."""
    return value if by == 1 else tirx.truncdiv(value, tirx.IntImm(str(value.ty), by))
