"""Sums that several blocks share: each leaves its part in the workspace, a second kernel adds them.

For few tiles of long sums, whose blocks would leave most of a device idle. The parts of a sum are
added in the order of the blocks' numbers, behind the bias: the same bits in every run. The second
kernel also has what else happens to a sum on its way out, the activation and the rounding.

In the workspace a part has the place of its output: ``[part][sample][output]``, in the accumulation
dtype.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.activations import Activation
from tvmconv.compute import finish
from tvmconv.compute.cuda import Kernel
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.store import activated
from tvmconv.compute.cuda.threads import Threads, divide
from tvmconv.compute.element import storage
from tvmconv.compute.workload import Workload

__all__ = ["kernel", "of", "place", "workspace_bytes"]

_THREADS = 128


def of(work: Workload) -> Workload:
    """The workload whose output are the sums alone."""
    return dataclasses.replace(
        work, activation=Activation("linear"), output_dtype=work.accumulate_dtype
    )


def workspace_bytes(work: Workload, parts: int) -> int:
    """Of all parts of all sums; the batch is fixed."""
    outputs = work.plan.batch * math.prod(work.plan.output_shape[1:])
    return parts * outputs * np.dtype(work.accumulate_dtype).itemsize


def place(threads: Threads, part: Any, n: Any) -> Any:
    """The number of a sample's part in the workspace, as if it were another sample."""
    return part.astype("int64") * threads.batch + n


def kernel(work: Workload, bias_size: int, parts: int) -> Kernel:
    """The kernel ``(workspace, bias, output, batch)`` that adds ``parts`` parts of each sum.

    ``work`` is the (folded) workload, ``bias_size`` the numbers of its packed bias.
    """
    size = math.prod(work.plan.output_shape[1:])
    vector = 16 // np.dtype(work.accumulate_dtype).itemsize
    plan = work.plan
    # Numbers that lie side by side, for one bias or a vector of them.
    run = size // plan.filters if plan.channels_first else plan.filters
    vector = 1 if run % vector else vector
    grid = (-(-size // (vector * _THREADS)), 1, 1)
    arguments = ("workspace", "bias", "output", "batch")

    def emit(symbol: str, serial: bool) -> Any:
        threads = Threads(
            work, work.accumulate_dtype, 1, bias_size, grid, _THREADS, True, serial,
            storage(work.input_dtype),
        )  # fmt: skip

        def block() -> None:
            n, number = threads.sample()
            with threads.each_thread() as thread:
                at = number * threads.const(_THREADS) + thread
                with T.If(at < threads.bound(size // vector)), T.Then(), threads.scope("sums"):
                    _add(threads, n, threads.named(at) * threads.const(vector), run, vector, parts)

        return threads.function(symbol, arguments, block)

    return Kernel("sums", arguments, grid, True, _THREADS, emit)


def _add(t: Threads, n: Any, first: Any, run: int, vector: int, parts: int) -> None:
    """``vector`` sums of sample ``n`` from ``first`` on, and what becomes of them."""
    work, zero, dtype = t.work, t.const(0), t.work.accumulate_dtype
    sample = tirx.IntImm("int64", math.prod(work.output_shape[1:]))
    sums: Any = Registers.local(t, (1, vector), dtype)
    part = Registers.local(t, (vector,), dtype)
    row, column = divide(first, run)
    with T.unroll(zero, t.const(vector)) as v:
        bias = t.bias[row] if work.plan.channels_first else t.bias[column + v]
        sums.store(bias, zero, zero, v)
    with T.unroll(zero, t.const(parts)) as p:
        with T.vectorized(zero, t.const(vector)) as v:
            at = place(t, p, n) * sample + (first + v).astype("int64")
            part.store(t.workspace[at], zero, v)
        with T.unroll(zero, t.const(vector)) as v:
            sums.store(sums.load(zero, zero, v) + part.load(zero, v), zero, zero, v)
    last = finish.result(work, (vector,))
    if finish.is_long(work):
        sums, last = activated(t, sums, zero), finish.rounded(work, (vector,))
    kept = storage(work.output_dtype)
    done = T.sblock_alloc_buffer((t.const(vector),), kept, scope="local")
    with T.unroll(zero, t.const(vector)) as v:
        T.buffer_store(done, last.at(sums.load(zero, zero, v), v), [v])
    piece = min(vector, 16 // np.dtype(kept).itemsize)
    for start in range(0, vector, piece):
        with T.vectorized(zero, t.const(piece)) as v:
            at = n * sample + (first + (v + t.const(start))).astype("int64")
            T.buffer_store(t.y, done[v + t.const(start)], [at])
