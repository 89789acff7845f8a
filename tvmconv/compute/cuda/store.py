"""How a thread's tile of sums becomes output: activation, rounding, the strided place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.cuda.phases import AxisPhase, Place
from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.threads import Threads
from tvmconv.compute.element import storage
from tvmconv.geometry import Plan

__all__ = ["Tile", "activated", "store_tile"]


class Tile(Protocol):
    """A thread's sums."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels and lanes."""

    def load(self, thread: Any, *indices: Any) -> Any:
        """One of them."""


def store_tile(
    threads: Threads,
    plan: Plan,
    phases: list[AxisPhase],
    n: Any,
    sums: Tile,
    thread: Any,
    places: tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]],
    vector: int,
    run: int | None = None,
) -> None:
    """Store a tile ``[voxels][lanes]`` of a thread.

    Parameters
    ----------
    places
        Functions of thread and group: the first voxel of a group of ``run``, and the first column
        of a group of ``vector``.
    vector, run
        Columns side by side, and voxels one after another (by default as many).
    """
    run = run or vector
    c = threads.const
    rows, columns = sums.shape
    rows_of, columns_of = (partial(place, thread) for place in places)
    together = not plan.channels_first and plan.filters % vector == 0
    dtype = storage(threads.work.output_dtype)
    # An activation with a policy of its own may widen: sums of 16 bytes make more than one store.
    piece = min(vector, 16 // np.dtype(dtype).itemsize)
    long = finish.is_long(threads.work)
    if long:
        sums = activated(threads, sums, thread)
        thread = c(0)
        last = finish.rounded(threads.work, (vector,))
    else:
        last = finish.result(threads.work, (vector,))
    done = T.sblock_alloc_buffer((c(vector),), dtype, scope="local")
    with T.unroll(c(0), c(rows // run)) as i, T.unroll(c(0), c(run)) as u:
        place = Place.of(plan, phases, rows_of(i) + u)
        with T.If(place.exists), T.Then(), T.sblock("voxel"):
            T.reads()
            T.writes()
            where = tuple(
                threads.named(phase.output(j))
                for phase, j in zip(phases, place.numbers, strict=True)
            )
            with T.unroll(c(0), c(columns // vector)) as j:
                column = columns_of(j)
                with T.unroll(c(0), c(vector)) as v:
                    value = sums.load(thread, i * c(run) + u, j * c(vector) + v)
                    T.buffer_store(done, last.at(value, v), [v])
                    if not together:
                        with threads.when(column + v < threads.bound(plan.filters)):
                            at = threads.output_at(n, where, column + v)
                            T.buffer_store(threads.y, done[v], [at])
                if together:
                    with threads.when(column < c(plan.filters)):
                        for first in range(0, vector, piece):
                            start = column + first if first else column
                            with T.vectorized(c(0), c(piece)) as v:
                                at = threads.output_at(n, where, start + v)
                                value = done[v + first if first else v]
                                T.buffer_store(threads.y, value, [at])


def activated(threads: Threads, sums: Tile, thread: Any) -> Registers:
    """The sums behind a long activation, in one loop over them.

    Written out for each of them it would be most of the binary. The loop needs them in (local)
    memory, which costs little beside the activation.
    """
    c = threads.const
    rows, columns = sums.shape
    kept = Registers.local(threads, (rows, columns), threads.work.accumulate_dtype)
    with T.unroll(c(0), c(rows)) as i, T.unroll(c(0), c(columns)) as j:
        kept.store(sums.load(thread, i, j), c(0), i, j)
    formula = finish.active(threads.work, (1,))
    with T.serial(c(0), c(rows * columns)) as k:
        T.buffer_store(kept.buffer, formula.at(kept.buffer[k], c(0)), [k])
    return kept
