"""Stores past the caches, of outputs that these do not hold.

A store into a line that no cache holds reads the line first, and what is written there is pushed
out again later: an output that is larger than the caches costs twice its bytes, and pushes out
inputs and weights. A whole line can be stored without. So register tiles whose stores fill lines
stream them, where the output begins with a line, which a caller's need not. Else they are stored
like any other: one branch asks for all. `codegen.instructions` has the code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.element import storage
from tvmconv.compute.frame import LINE_BYTES, Frame, i64
from tvmconv.policies import numpy_dtype

__all__ = [
    "BEGINS",
    "FENCE",
    "STREAM",
    "begins",
    "either",
    "elsewhere",
    "fills",
    "kernel",
    "put",
    "store",
]

#: Beginning of the names of functions of a register and its place, whose lanes and dtype are
#: behind it; function of a place: whether a line begins there; of nothing.
STREAM, BEGINS, FENCE = "stream_store_", "stream_begins", "stream_fence"


def fills(elements: int, dtype: str) -> bool:
    """Whether so many elements side by side are whole lines."""
    return elements * numpy_dtype(dtype).itemsize % LINE_BYTES == 0


def begins(frame: Frame) -> Any:
    """Whether the output begins with a line."""
    first = tirx.address_of(frame.y[(i64(0),) * 5])
    return tirx.call_extern("int32", BEGINS, first) != tirx.const(0, "int32")


def either(frame: Frame, past: Callable[[], None], near: Callable[[], None]) -> None:
    """Emit code with stores past the caches, where the output begins so that it can, and without.

    Without alone where the tiling does not ask for it.
    """
    if not frame.streams:
        near()
        return
    with T.If(begins(frame)):
        with T.Then():
            past()
        with T.Else():
            near()


def elsewhere(frame: Frame, body: Callable[[], None]) -> None:
    """Emit what only stores into the caches need."""
    if not frame.streams:
        body()
        return
    with T.If(tirx.Not(begins(frame))), T.Then():
        body()


def store(frame: Frame, index: tuple[Any, ...], size: int, value: Callable[[Any], Any]) -> None:
    """Emit the store of ``size`` outputs side by side: ``value(lane)``, from ``index`` on."""
    dtype = storage(frame.work.output_dtype)
    done = T.sblock_alloc_buffer((i64(size),), dtype, scope="local")
    with T.vectorized(i64(0), i64(size)) as v:
        T.buffer_store(done, value(v), [v])
    put(frame, done[tirx.Ramp(i64(0), i64(1), size)], size, frame.y[index])


def put(frame: Frame, register: Any, size: int, element: Any) -> None:
    """Emit the store of a register of ``size`` lanes past the caches, where ``element`` lies."""
    name = f"{STREAM}{storage(frame.work.output_dtype)}x{size}"
    T.evaluate(tirx.call_extern("int32", name, register, tirx.address_of(element)))


def kernel(frame: Frame, tile: Callable[[Any, Any], None]) -> Any:
    """`Frame.kernel`, whose last tile makes such stores visible to other threads, like any store.

    The C run time hands a range of tiles to a thread and waits for it: one fence is enough.
    """

    def fenced(n: Any, index: Any) -> None:
        tile(n, index)
        number, _, end = frame.call
        with T.If(number == end - i64(1)), T.Then():
            T.evaluate(tirx.call_extern("int32", FENCE))

    return frame.kernel(fenced if frame.streams else tile)
