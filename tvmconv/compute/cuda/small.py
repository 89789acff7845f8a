"""Few filters on a GPU: a thread computes all phases of a few input positions.

A matrix product would be mostly padding here. Instead neighbouring threads take neighbouring input
positions ``q``, whose outputs are ``q * stride + residue - lo`` on each axis, and keep the sums of
all residues and filters in registers. A block brings the inputs that its positions reach (those
that do not exist as zeros) and the weights of a few channels to shared memory; a weight is then
read once for all positions of a thread, by all threads of a warp from one place.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.cuda.parts import Parts
from tvmconv.compute.cuda.phase_form import Block, PhaseForm
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.store import activated
from tvmconv.compute.cuda.threads import Threads, divide, split
from tvmconv.compute.element import widen
from tvmconv.compute.lanes import Group, groups, tap_order
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["CudaSmall"]

_Three = tuple[int, int, int]


@dataclass(frozen=True)
class CudaSmall(PhaseForm):
    """The form for few filters of one workload under one tiling.

    ``tiling.voxels`` are the positions of a thread, ``tiling.lanes`` what packed filters are
    rounded up to, ``tiling.depth`` the channels of a slice, ``tiling.block_voxels`` the positions
    of a block; threads beyond those that it needs share its sums: see `Parts`.
    """

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes: a thread has all phases anyway."""
        return self.work

    @property
    def group(self) -> Group:
        """All filters side by side, rounded up to whole lanes."""
        vectors = -(-self.work.plan.filters // self.tiling.lanes)
        (found,) = groups(self.work, self.tiling.lanes, vectors)
        return found

    @property
    def load_vector(self) -> int:
        """Input channels in one load."""
        plan = self.work.plan
        return 1 if plan.channels_first else math.gcd(self.vector, self.tiling.depth,
                                                      plan.in_channels)  # fmt: skip

    @property
    def lattice(self) -> tuple[range, range, range]:
        """Input positions along each axis whose outputs exist."""
        d, h, w = map(_positions, self.work.plan.axes)
        return d, h, w

    @property
    def reach(self) -> _Three:
        """How far back a position's taps go, along each axis."""
        d, h, w = ((axis.max_taps - 1) * axis.dilation for axis in self.work.plan.axes)
        return d, h, w

    @property
    def row(self) -> int:
        """Weights of a row of taps in shared memory, in whole vectors."""
        weights = self.work.plan.axes[2].kernel * self.work.plan.filters
        return -(-weights // self.vector) * self.vector

    @property
    def tile_threads(self) -> int:
        """Threads that a block's positions need: those of a part."""
        return self.tiling.block_voxels // self.tiling.voxels

    @property
    def threads_along(self) -> _Three:
        """Threads of a part along each axis."""
        tiling = self.tiling
        depth = self.tile_threads // (tiling.height * tiling.width)
        return depth, tiling.height, tiling.width

    @property
    def tile(self) -> _Three:
        """Positions of a block along each axis."""
        d, h, w = self.threads_along
        return d * self.tiling.voxels, h, w

    @property
    def inside(self) -> _Three:
        """Inputs that a block reaches, along each axis."""
        d, h, w = (t + back for t, back in zip(self.tile, self.reach, strict=True))
        return d, h, w

    @property
    def blocks(self) -> _Three:
        """Blocks along each axis."""
        d, h, w = (-(-len(r) // t) for r, t in zip(self.lattice, self.tile, strict=True))
        return d, h, w

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        depth, height, _ = self.work.plan.axes
        weights = depth.kernel * height.kernel * self.row
        return self.tiling.depth * (math.prod(self.inside) + weights) * self.element

    @property
    def grid(self) -> _Three:
        """Blocks of a sample."""
        return math.prod(self.blocks), 1, 1

    def block(self, threads: Threads) -> Block:
        """What a block does."""
        return _Block(self, threads)


def _positions(axis: Axis) -> range:
    found = [phase for phase in axis.phases if phase.count]
    return range(min(p.first for p in found), max(p.first + p.count for p in found))


class _Block:
    """Emits what one block of threads does."""

    def __init__(self, form: CudaSmall, threads: Threads) -> None:
        self.form = form
        self.threads = threads
        self.tiling = form.tiling
        self.plan = form.work.plan
        self.dtype = form.work.accumulate_dtype
        self.strides = tuple(axis.stride for axis in self.plan.axes)
        self.parts = Parts(threads, form.tile_threads)

    def emit(self) -> None:
        """The whole block."""
        t, tiling, plan = self.threads, self.tiling, self.plan
        n, number = t.sample()
        with t.scope("tile"):
            self.n = t.named(n)
            self.first = [
                t.named(block * t.const(size) + t.const(places.start))
                for block, size, places in zip(
                    split(number, self.form.blocks), self.form.tile, self.form.lattice, strict=True
                )
            ]
            rows = plan.axes[0].kernel * plan.axes[1].kernel
            self.inputs = t.shared((tiling.depth, *self.form.inside), self.dtype)
            self.weights = t.shared((tiling.depth, rows, self.form.row), self.dtype)
            phases = math.prod(self.strides)
            self.sums = t.registers((tiling.voxels * phases, plan.filters), self.dtype)
            with t.each_thread() as thread:
                start = partial(self._start, thread)
                self.parts.choose(thread, partial(start, True), partial(start, False))
            slices = -(-plan.in_channels // tiling.depth)
            with T.serial(t.const(0), t.const(slices)) as step:
                channel = step * t.const(tiling.depth)
                with t.each_thread() as thread, t.scope("load"):
                    self._load_inputs(thread, channel)
                    self._load_weights(thread, channel)
                t.barrier()
                with t.each_thread() as thread, t.scope("multiply"):
                    self._multiply(thread, channel)
                t.barrier()
            self.parts.add(self.sums, self.inputs)
            with t.each_thread() as thread, t.scope("store"):
                with t.when(self.parts.is_first(thread)):
                    self._store(thread)

    def _start(self, thread: Any, biased: bool) -> None:
        t = self.threads
        (rows, filters), zero = self.sums.shape, t.const(0)
        with T.unroll(zero, t.const(rows)) as i, T.unroll(zero, t.const(filters)) as f:
            value = t.bias[f] if biased else tirx.const(0, self.dtype)
            self.sums.store(value, thread, i, f)

    def _exists(self, channel: Any) -> Any | None:
        """Whether a channel of a slice exists; None: always."""
        if self.plan.in_channels % self.tiling.depth == 0:
            return None
        return channel < self.threads.const(self.plan.in_channels)

    def _load_inputs(self, thread: Any, channel: Any) -> None:
        """A slice of the inputs that the block reaches, to shared memory, widened."""
        t, form, plan = self.threads, self.form, self.plan
        vector = form.load_vector
        vectors = self.tiling.depth // vector
        voxels = math.prod(form.inside)
        with T.serial(t.const(0), t.const(-(-voxels * vectors // self.tiling.threads))) as i:
            number = i * t.const(self.tiling.threads) + thread
            with t.when(number < t.const(voxels * vectors)), t.scope("input"):
                if plan.channels_first:
                    own, voxel = divide(number, voxels)
                else:
                    voxel, own = divide(number, vectors)
                own = own * t.const(vector)
                inside = [t.named(index) for index in split(voxel, form.inside)]
                # The reach is added to both sides, so that all stays positive but what is outside.
                place = [
                    first + (index - t.const(back))
                    for first, index, back in zip(self.first, inside, form.reach, strict=True)
                ]
                conditions = [
                    tirx.all(p >= t.const(0), p < t.const(axis.size))
                    for p, axis in zip(place, plan.axes, strict=True)
                ]
                exists = self._exists(channel + own)
                conditions += [] if exists is None else [exists]
                kept = T.sblock_alloc_buffer((t.const(vector),), t.input_dtype, scope="local")
                zero = t.const(0)
                with T.If(tirx.all(*conditions)):
                    with T.Then(), T.vectorized(zero, t.const(vector)) as v:
                        at = t.input_at(self.n, place[0], place[1], place[2], channel + own + v)
                        T.buffer_store(kept, t.x[at], [v])
                    with T.Else(), T.vectorized(zero, t.const(vector)) as v:
                        T.buffer_store(kept, tirx.const(0, t.input_dtype), [v])
                with T.unroll(zero, t.const(vector)) as v:
                    value = widen(kept[v], form.work.input_dtype, self.dtype)
                    self.inputs.store(value, own + v, *inside)

    def _load_weights(self, thread: Any, channel: Any) -> None:
        """A slice of the weights to shared memory: taps and filters of a row side by side."""
        t, plan = self.threads, self.plan
        depth, height, width = (axis.kernel for axis in plan.axes)
        sizes = (depth * height, width, self.tiling.depth, plan.filters)
        total = math.prod(sizes)
        with T.serial(t.const(0), t.const(-(-total // self.tiling.threads))) as i:
            number = i * t.const(self.tiling.threads) + thread
            inside = number < t.const(total)
            row, tap, own, filters = split(number, sizes)
            exists = self._exists(channel + own)
            with t.when(inside if exists is None else tirx.all(inside, exists)):
                at = (row * t.const(width) + tap) * t.const(plan.in_channels) + channel + own
                value = t.weights[at * t.const(self.form.group.lanes) + filters]
                self.weights.store(value, own, row, tap * t.const(plan.filters) + filters)

    def _place(self, thread: Any) -> list[Any]:
        """A thread's first position in the block's tile."""
        return split(self.parts.of(thread)[1], self.form.threads_along)

    def _multiply(self, thread: Any, channel: Any) -> None:
        """All products of a slice: channel by channel, row of taps by row of taps."""
        t, plan = self.threads, self.plan
        zero = t.const(0)
        along = self.form.threads_along
        place = [t.named(index) for index in self._place(thread)]
        own = t.named(self.parts.channel(thread, self.tiling.depth))
        count: Any = t.const(self.tiling.depth // self.parts.number)
        if plan.in_channels % self.tiling.depth:
            left = t.const(plan.in_channels) - channel - own
            count = t.named(tirx.min(count, tirx.max(left, zero)))
        down, up, _ = plan.axes
        with (
            T.serial(zero, count) as step,
            T.serial(zero, t.const(down.max_taps)) as a,
            T.serial(zero, t.const(up.max_taps)) as b,
            t.scope("row"),
        ):
            c = own + step
            width = plan.axes[2]
            inputs = Registers.local(t, (self.tiling.voxels, width.max_taps), self.dtype)
            weights = Registers.local(t, (self.form.row,), self.dtype)
            steps = [t.const(axis.max_taps - 1) - tap for axis, tap in ((down, a), (up, b))]
            back = [s * t.const(x.dilation) for s, x in zip(steps, (down, up), strict=True)]
            with T.unroll(zero, t.const(self.tiling.voxels)) as p:
                with T.unroll(zero, t.const(width.max_taps)) as tap:
                    across = (t.const(width.max_taps - 1) - tap) * t.const(width.dilation)
                    value = self.inputs.load(
                        c,
                        p * t.const(along[0]) + place[0] + back[0],
                        place[1] + back[1],
                        place[2] + across,
                    )
                    inputs.store(value, thread, p, tap)
            for rd, rh in itertools.product(range(down.stride), range(up.stride)):
                if rd >= down.kernel or rh >= up.kernel:
                    continue
                kd = a * t.const(down.stride) + t.const(rd)
                kh = b * t.const(up.stride) + t.const(rh)
                reached = [
                    k < t.const(axis.kernel)
                    for k, axis, r in ((kd, down, rd), (kh, up, rh))
                    if axis.phases[r].taps < axis.max_taps
                ]
                with t.when(tirx.all(*reached) if reached else None):
                    with T.unroll(zero, t.const(self.form.row // self.form.vector)) as i:
                        with T.vectorized(zero, t.const(self.form.vector)) as v:
                            at = i * t.const(self.form.vector) + v
                            row = kd * t.const(up.kernel) + kh
                            weights.store(self.weights.load(c, row, at), thread, at)
                    self._products(thread, (rd, rh), inputs, weights)

    def _products(
        self, thread: Any, residues: tuple[int, int], inputs: Registers, weights: Registers
    ) -> None:
        """The products of a row of taps, which is in registers, with a thread's inputs."""
        t, plan = self.threads, self.plan
        width = plan.axes[2]
        phases = math.prod(self.strides)
        for number, kernel in enumerate(tap_order(width)):
            tap, rw = divmod(kernel, width.stride)
            phase = (residues[0] * self.strides[1] + residues[1]) * self.strides[2] + rw
            with T.unroll(t.const(0), t.const(self.tiling.voxels)) as p:
                with T.unroll(t.const(0), t.const(plan.filters)) as f:
                    at = (thread, p * t.const(phases) + t.const(phase), f)
                    weight = weights.load(thread, t.const(number * plan.filters) + f)
                    product = inputs.load(thread, p, t.const(tap)) * weight
                    self.sums.store(self.sums.load(*at) + product, *at)

    def _store(self, thread: Any) -> None:
        """Every sum to its output, where that exists."""
        t, plan, work = self.threads, self.plan, self.form.work
        place = [
            t.named(first + index)
            for first, index in zip(self.first, self._place(thread), strict=True)
        ]
        sums = self.sums
        last = finish.result(work, (1,))
        if finish.is_long(work):
            sums = activated(t, sums, thread)
            last = finish.rounded(work, (1,))
        sizes = (self.tiling.voxels, *self.strides)
        with T.unroll(t.const(0), t.const(math.prod(sizes))) as i:
            p, *residues = split(i, sizes)
            depth = place[0] + p * t.const(self.form.threads_along[0])
            position = [depth, place[1], place[2]]
            out = [
                q * t.const(axis.stride) + (residue - t.const(axis.lo))
                for q, axis, residue in zip(position, plan.axes, residues, strict=True)
            ]
            inside = [
                tirx.all(o >= t.const(0), o < t.bound(axis.out))
                for o, axis in zip(out, plan.axes, strict=True)
            ]
            with t.when(tirx.all(*inside)), T.unroll(t.const(0), t.const(plan.filters)) as f:
                value = last.at(sums.load(thread, i, f), t.const(0))
                T.buffer_store(t.y, value, [t.output_at(self.n, (out[0], out[1], out[2]), f)])
