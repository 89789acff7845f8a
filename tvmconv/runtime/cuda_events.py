"""How long work takes on a device, by events of NVIDIA's driver."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from tvmconv.runtime.cuda_driver import Device

__all__ = ["Stopwatch"]

_OWN_ORDER: Final = 1  # CU_STREAM_NON_BLOCKING
_RELAXED: Final = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


class Stopwatch:
    """Times work on a stream of its own by the driver's events, as the device sees it.

    Parameters
    ----------
    owner
        The device.

    Attributes
    ----------
    stream : int
        Where the work has to be queued.
    """

    def __init__(self, owner: Device) -> None:
        self._owner, self._call = owner, owner._driver.call
        self._events = [ctypes.c_void_p(), ctypes.c_void_p()]
        made = ctypes.c_void_p()
        with owner.current():
            self._call("cuStreamCreate", ctypes.byref(made), _OWN_ORDER)
            for event in self._events:
                self._call("cuEventCreate", ctypes.byref(event), 0)
        self.stream = made.value or 0

    def seconds(self, queue: Callable[[], object]) -> float:
        """Seconds of the work that ``queue`` puts on the stream; waits for it.

        Raises
        ------
        DriverError
            It failed on the device.
        """
        first, last = self._events
        found = ctypes.c_float()
        with self._owner.current():
            self._call("cuEventRecord", first, self.stream)
            queue()
            self._call("cuEventRecord", last, self.stream)
            self._call("cuEventSynchronize", last)
            self._call("cuEventElapsedTime", ctypes.byref(found), first, last)
        return found.value * 1e-3

    def repeated(self, queue: Callable[[], object], calls: int) -> Callable[[], None]:
        """A function that puts the work on the stream so many times.

        It is captured into a graph: queued one by one, short pieces would be as slow as the host.

        Raises
        ------
        DriverError
            The driver refused the capture.
        """
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        call = self._call
        with self._owner.current():
            call("cuStreamBeginCapture_v2", self.stream, _RELAXED)
            try:
                for _ in range(calls):
                    queue()
            finally:
                call("cuStreamEndCapture", self.stream, ctypes.byref(graph))
            call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, 0)
            call("cuGraphDestroy", graph)
        handle = _Graph(self._owner, made)

        def launch() -> None:
            call("cuGraphLaunch", handle.made, self.stream)

        return launch


class _Graph:
    """A graph that can be launched, given back when nobody has it any more."""

    def __init__(self, owner: Device, made: ctypes.c_void_p) -> None:
        self._owner, self.made = owner, made

    def __del__(self) -> None:
        with self._owner.current():
            self._owner._driver.call("cuGraphExecDestroy", self.made)
