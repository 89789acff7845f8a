"""A block's threads in parts: each has its own channels of every slice, and sums of its own.

For few voxels, which give few blocks: more threads of each share one long sum. The parts' sums are
added in shared memory, always in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmconv.compute.cuda.registers import Registers
from tvmconv.compute.cuda.threads import Threads, divide

if TYPE_CHECKING:
    from collections.abc import Callable

    from tvmconv.compute.cuda.registers import Shared

__all__ = ["Parts"]


@dataclass(frozen=True)
class Parts:
    """The parts of a block.

    Parameters
    ----------
    threads
        The kernel.
    each : int
        Threads of a part.
    """

    threads: Threads
    each: int

    @property
    def number(self) -> int:
        """How many there are."""
        found, rest = divmod(self.threads.threads, self.each)
        assert rest == 0, (self.threads.threads, self.each)
        return found

    def of(self, thread: Any) -> tuple[Any, Any]:
        """A thread's part, and its number in it."""
        if self.number == 1:
            return self.threads.const(0), thread
        return divide(thread, self.each)

    def is_first(self, thread: Any) -> Any | None:
        """Whether a thread is of the first part; None where that is the only one."""
        return self.of(thread)[0] == self.threads.const(0) if self.number > 1 else None

    def choose(self, thread: Any, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        """``then`` for a thread of the first part, else ``otherwise``."""
        first = self.is_first(thread)
        self.threads.choose([] if first is None else [first], then, otherwise)

    def channel(self, thread: Any, depth: int) -> Any:
        """The first channel of a slice of ``depth`` that is the part's own."""
        assert depth % self.number == 0, (depth, self.number)
        return self.of(thread)[0] * self.threads.const(depth // self.number)

    def add(self, sums: Registers, scratch: Shared) -> None:
        """Add all parts' sums to those of the first; every thread is done with ``scratch``."""
        from tvm.tirx.script.builder import ir as T

        t = self.threads
        rows, columns = sums.shape
        capacity = 1
        for extent in scratch.shape:
            capacity *= extent
        chunk = min(rows * columns, capacity // self.each)
        assert chunk > 0, "the slices are smaller than one sum of each thread"

        def each(thread: Any, first: int, body: Callable[[Any, Any, Any], None]) -> None:
            last = min(first + chunk, rows * columns)
            with T.unroll(t.const(0), t.const(last - first)) as k:
                i, j = divide(k + t.const(first), columns)
                body(i, j, k * t.const(self.each) + self.of(thread)[1])

        for part in range(1, self.number):
            for first in range(0, rows * columns, chunk):
                with t.each_thread() as thread, t.scope("leave"):
                    with t.when(self.of(thread)[0] == t.const(part)):

                        def leave(i: Any, j: Any, at: Any, thread: Any = thread) -> None:
                            T.buffer_store(scratch.buffer, sums.load(thread, i, j), [at])

                        each(thread, first, leave)
                t.barrier()
                with t.each_thread() as thread, t.scope("add"):
                    with t.when(self.of(thread)[0] == t.const(0)):

                        def add(i: Any, j: Any, at: Any, thread: Any = thread) -> None:
                            total = sums.load(thread, i, j) + scratch.buffer[at]
                            sums.store(total, thread, i, j)

                        each(thread, first, add)
                t.barrier()
