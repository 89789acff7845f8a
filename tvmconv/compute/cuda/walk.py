"""A block of threads walks through its sum: the taps of its phase, and slices of the channels.

What a slice looks like in shared memory, how it gets there and how it is multiplied, is not here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.cuda.phases import AxisPhase, Place, Room, phase_of
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Walk", "Walked"]

_NOWHERE = -(2**24)
"""An input position so far outside that no tap of it exists."""


class Walked(Protocol):
    """The forms that walk through slices."""

    @property
    def tiling(self) -> CudaTiling:
        """How it is cut."""

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes."""


class Walk(ABC):
    """Where a block of threads is, and which inputs its threads bring.

    Parameters
    ----------
    form, threads
        The form, and the kernel that is built.
    loads : int
        Pieces of a slice of inputs that a thread brings.
    unit : int
        Channels whose inputs are always loaded together, or 1.
    """

    def __init__(self, form: Walked, threads: Threads, loads: int, unit: int) -> None:
        self.tiling = form.tiling
        self.threads = threads
        self.work = form.folded
        self.plan = form.folded.plan
        # Voxels side by side in memory where channels are first, else channels.
        self.along_channels = not self.plan.channels_first
        self.loads = loads
        self.unit = unit
        self.slices = -(-self.plan.in_channels // self.tiling.depth)

    @abstractmethod
    def load_place(self, thread: Any, i: Any) -> tuple[Any, Any]:
        """Row of the tile and first channel of the slice of load ``i`` of a thread."""

    @contextmanager
    def tile(self) -> Iterator[None]:
        """The block's tile: its sample, phase, rows and columns have names inside."""
        t = self.threads
        n, number = t.sample()
        rows, phase = divide(number, Room(self.plan).phases)
        with t.scope("tile"):
            self.n = t.named(n)
            self.row_tile, self.column_tile = t.named(rows), t.block[1]
            self.phases: list[AxisPhase] = phase_of(self.plan, phase, t.named)
            taps = self.phases[0].taps * self.phases[1].taps * self.phases[2].taps
            steps = t.named(taps * t.const(self.slices))
            self.first_step, self.steps = t.const(0), steps
            if self.tiling.sum_blocks > 1:
                share, shares = t.block[2], self.tiling.sum_blocks
                self.first_step = t.named(divide(share * steps, shares)[0])
                end = divide((share + t.const(1)) * steps, shares)[0]
                self.steps = t.named(end - self.first_step)
            self.place = t.registers((self.loads, 4), t.index)
            # The slice that is loaded next: tap along each axis, slice of channels.
            self.next = t.registers((4,), t.index)
            yield

    def begin(self, thread: Any) -> None:
        """The thread's places in the input, and the first slice."""
        t, tiling = self.threads, self.tiling
        zero = t.const(0)
        with T.unroll(zero, t.const(self.loads)) as i:
            row, channel = self.load_place(thread, i)
            flat = self.row_tile * t.const(tiling.block_voxels) + row
            place = Place.of(self.plan, self.phases, flat)
            position = [p.first + j for j, p in zip(place.numbers, self.phases, strict=True)]
            for axis, q in enumerate(position):
                q = tirx.Select(place.exists, q, t.const(_NOWHERE))  # noqa: PLW2901
                self.place.store(q, thread, i, t.const(axis))
            # In units: that the factor stays visible makes a load of a vector one load.
            flat = t.flat_input(position, channel)
            self.place.store(divide(flat, self.unit)[0], thread, i, t.const(3))
        rest: Any = zero
        numbers = [zero] * 4
        if tiling.sum_blocks > 1:
            rest, numbers[3] = divide(self.first_step, self.slices)
            for axis in (2, 1):
                # A phase without taps has no steps.
                taps = tirx.max(self.phases[axis].taps, t.const(1))
                rest, numbers[axis] = tirx.truncdiv(rest, taps), tirx.truncmod(rest, taps)
            numbers[0] = rest
        for number, value in enumerate(numbers):
            self.next.store(value, thread, t.const(number))

    def tap(self, thread: Any) -> list[Any]:
        """The tap along each axis of the next slice."""
        return [self.next.load(thread, self.threads.const(axis)) for axis in range(3)]

    def first(self, thread: Any) -> Any:
        """The first channel of the next slice."""
        t = self.threads
        return t.named(self.next.load(thread, t.const(3)) * t.const(self.tiling.depth))

    def moved(self, tap: list[Any], first: Any) -> Any:
        """How far, in units, the inputs of a slice lie before those of the first one."""
        t = self.threads
        back = [p * t.const(axis.dilation) for p, axis in zip(tap, self.plan.axes, strict=True)]
        moved = t.flat_input(back, t.const(0)) - t.flat_input([t.const(0)] * 3, first)
        return t.named(tirx.truncdiv(moved, t.const(self.unit)))

    def reached(self, thread: Any, i: Any, tap: list[Any]) -> list[Any]:
        """Conditions under which the input of load ``i`` exists."""
        t = self.threads
        position = [
            self.place.load(thread, i, t.const(a)) - tap[a] * t.const(axis.dilation)
            for a, axis in enumerate(self.plan.axes)
        ]
        return [
            tirx.all(p >= t.const(0), p < t.const(axis.size))
            for p, axis in zip(position, self.plan.axes, strict=True)
        ]

    def input_index(self, thread: Any, i: Any, moved: Any) -> Any:
        """The index in the sample of the first input of load ``i``."""
        t = self.threads
        return (self.place.load(thread, i, t.const(3)) - moved) * t.const(self.unit)

    def packed_tap(self, tap: list[Any]) -> Any:
        """The number of a tap in the packed weights."""
        t = self.threads
        d, h, w = self.phases
        kernel = d.kernel_index(tap[0]) * t.const(self.plan.axes[1].kernel) + h.kernel_index(tap[1])
        return kernel * t.const(self.plan.axes[2].kernel) + w.packed_index(tap[2])

    def advance(self, thread: Any) -> None:
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
