"""Activations that mix values along axes (softmax and its like): a second kernel, in place.

A thread takes one vector of the output, whatever its axes. glu is not here: it halves its axis, so
the convolution applies it.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.cuda import Kernel
from tvmconv.compute.cuda.threads import Threads, split
from tvmconv.compute.element import storage, widen
from tvmconv.compute.workload import Workload

__all__ = ["kernel"]

_THREADS = 128


def kernel(work: Workload) -> Kernel:
    """The kernel ``(output, batch)`` that applies the activation to the sums in the output."""
    kept = [axis for axis in range(1, 5) if axis not in work.mixed_axes]
    vectors = math.prod(work.output_shape[axis] for axis in kept)
    grid = (-(-vectors // _THREADS), 1, 1)
    per_sample = 0 not in work.mixed_axes

    def emit(symbol: str, serial: bool) -> Any:
        threads = Threads(
            work, work.accumulate_dtype, 1, 1, grid, _THREADS, per_sample, serial,
            storage(work.input_dtype),
        )  # fmt: skip

        def block() -> None:
            if per_sample:
                n, number = threads.sample()
            else:
                n, number = tirx.IntImm("int64", 0), threads.block[0].astype(threads.index)
            with threads.each_thread() as thread:
                at = number * threads.const(_THREADS) + thread
                with T.If(at < threads.const(vectors)), T.Then():
                    _vector(threads, n, at, kept)

        return threads.function(symbol, ("output", "batch"), block)

    return Kernel("finish", ("output", "batch"), grid, per_sample, _THREADS, emit)


def _vector(threads: Threads, n: Any, at: Any, kept: list[int]) -> None:
    work = threads.work
    shape = work.output_shape
    sizes = tuple(shape[axis] for axis in kept)
    fixed = dict(zip(kept, split(at, sizes) if sizes else [], strict=True))
    fixed = {axis: index.astype("int64") for axis, index in fixed.items()}
    if 0 not in work.mixed_axes:
        fixed[0] = n
    extents = [threads.batch if axis == 0 else shape[axis] for axis in work.mixed_axes]

    def place(inner: list[Any]) -> Any:
        where = {**fixed, **dict(zip(work.mixed_axes, inner, strict=True))}
        flat = where[0]
        for axis in range(1, 5):
            flat = flat * tirx.IntImm("int64", shape[axis]) + where[axis]
        return flat

    with threads.scope("vector"):
        finish.mix(
            work,
            extents,
            lambda j: widen(threads.y[place(j)], work.output_dtype, work.accumulate_dtype),
            lambda value, j: T.buffer_store(threads.y, value, [place(j)]),
        )
