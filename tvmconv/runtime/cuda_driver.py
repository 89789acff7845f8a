"""NVIDIA's driver from Python: devices, their memory, and the order of work on streams.

Only ctypes and the driver's own library, opened at first use. The kernels are launched by the
artifact's C code; this is for the arrays around them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from tvmconv.errors import ArtifactError, InputError

__all__ = [
    "FAULTS",
    "FIRST_CODE",
    "PER_THREAD_STREAM",
    "Device",
    "DriverError",
    "Hardware",
    "Memory",
    "device",
    "device_count",
    "hardware",
    "home",
    "unavailable",
]

PER_THREAD_STREAM: Final = 2
"""The driver's handle for the default stream of the calling thread."""

FAULTS: Final = (700, 714, 715, 716, 717, 718, 719)
"""What the driver answers for faults of a kernel, from then on, until the process ends."""

FIRST_CODE: Final = 1000
"""A library's code for what the driver answers is so much more."""

_OUT_OF_MEMORY: Final = 2
_NO_DEVICE: Final = 100
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_...
_MULTIPROCESSORS, _CLOCK_KHZ, _MEMORY_KHZ, _BUS_BITS = 16, 13, 36, 37
_DEVICE_ORDINAL: Final = 9  # CU_POINTER_ATTRIBUTE_...
_RELAXED: Final = 2
_NO_TIMING: Final = 2

_u64, _i32, _size, _pointer = ctypes.c_uint64, ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p
_REFERENCE = ctypes.c_void_p
_FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (_REFERENCE,),
    "cuGetErrorString": (_i32, _REFERENCE),
    "cuDeviceGetCount": (_REFERENCE,),
    "cuDeviceGet": (_REFERENCE, _i32),
    "cuDeviceGetName": (ctypes.c_char_p, _i32, _i32),
    "cuDeviceGetAttribute": (_REFERENCE, _i32, _i32),
    "cuDevicePrimaryCtxRetain": (_REFERENCE, _i32),
    "cuPointerGetAttributes": (ctypes.c_uint, _REFERENCE, _REFERENCE, _u64),
    "cuCtxPushCurrent_v2": (_pointer,),
    "cuCtxPopCurrent_v2": (_REFERENCE,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (_REFERENCE, _size),
    "cuMemFree_v2": (_u64,),
    "cuMemcpyHtoDAsync_v2": (_u64, _pointer, _size, _pointer),
    "cuMemcpyDtoHAsync_v2": (_pointer, _u64, _size, _pointer),
    "cuStreamCreate": (_REFERENCE, ctypes.c_uint),
    "cuStreamSynchronize": (_pointer,),
    "cuStreamBeginCapture_v2": (_pointer, _i32),
    "cuStreamEndCapture": (_pointer, _REFERENCE),
    "cuGraphInstantiateWithFlags": (_REFERENCE, _pointer, ctypes.c_ulonglong),
    "cuGraphLaunch": (_pointer, _pointer),
    "cuGraphDestroy": (_pointer,),
    "cuGraphExecDestroy": (_pointer,),
    "cuStreamIsCapturing": (_pointer, _REFERENCE),
    "cuStreamWaitEvent": (_pointer, _pointer, ctypes.c_uint),
    "cuEventCreate": (_REFERENCE, ctypes.c_uint),
    "cuEventRecord": (_pointer, _pointer),
    "cuEventDestroy_v2": (_pointer,),
    "cuEventSynchronize": (_pointer,),
    "cuEventElapsedTime": (_REFERENCE, _pointer, _pointer),
    "cuThreadExchangeStreamCaptureMode": (_REFERENCE,),
}


class DriverError(ArtifactError):
    """What the driver answered; ``code`` is its ``CUresult``."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class _Driver:
    """The functions of libcuda.so.1, each of which raises what it answers."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as exc:
            raise ArtifactError("there is no NVIDIA driver: libcuda.so.1 cannot be opened") from exc
        for name, arguments in _FUNCTIONS.items():
            try:
                getattr(self._library, name).argtypes = arguments
            except AttributeError as exc:
                raise ArtifactError(
                    f"the NVIDIA driver is too old: it lacks {name}; install a newer one"
                ) from exc
        code = int(self._library.cuInit(0))
        if code == _NO_DEVICE:
            raise ArtifactError("the NVIDIA driver finds no CUDA device")
        if code:
            raise ArtifactError(f"the NVIDIA driver cannot be used: {self.text(code)}")
        self.process = os.getpid()

    def text(self, code: int) -> str:
        """The driver's sentence for a result."""
        found = ctypes.c_char_p()
        if self._library.cuGetErrorString(code, ctypes.byref(found)) or found.value is None:
            return f"CUDA error {code}"
        return found.value.decode(errors="replace")

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function.

        Raises
        ------
        InputError
            The device has not enough memory.
        DriverError
            Anything else failed; with the driver's text.
        """
        code = int(getattr(self._library, function)(*arguments))
        if code == _OUT_OF_MEMORY:
            raise InputError(f"The CUDA device has not enough free memory ({function}).")
        if code:
            raise DriverError(f"CUDA: {self.text(code)} ({function} answered {code})", code)


_LOCK: Final = threading.Lock()


@lru_cache(maxsize=1)
def _opened() -> _Driver:
    return _Driver()


def _driver() -> _Driver:
    with _LOCK:
        driver = _opened()
    if driver.process != os.getpid():
        raise ArtifactError(
            "this process was forked after CUDA was used, which CUDA does not survive; start "
            "processes with the method 'spawn'"
        )
    return driver


def unavailable() -> str:
    """Why no CUDA device can be used here; empty where one can."""
    try:
        return "" if device_count() else "the NVIDIA driver finds no CUDA device"
    except ArtifactError as exc:
        return str(exc)


def device_count() -> int:
    """How many CUDA devices there are.

    Raises
    ------
    ArtifactError
        There is no driver, or it does not work.
    """
    found = _i32()
    _driver().call("cuDeviceGetCount", ctypes.byref(found))
    return found.value


def home(pointer: int) -> int:
    """The index of the device whose memory a pointer is.

    Raises
    ------
    InputError
        It is no pointer to a device's memory.
    """
    found = _i32(-1)
    attribute, place = _i32(_DEVICE_ORDINAL), ctypes.c_void_p(ctypes.addressof(found))
    _driver().call(
        "cuPointerGetAttributes", 1, ctypes.byref(attribute), ctypes.byref(place), pointer
    )
    if found.value < 0:
        raise InputError("Expected an array on a CUDA device. Received a pointer to other memory.")
    return found.value


@dataclass(frozen=True)
class Hardware:
    """What the driver says of a device, without using it.

    Attributes
    ----------
    index : int
        As the driver counts them.
    name : str
        NVIDIA's name of it.
    capability : tuple of int
        Compute capability, ``(8, 0)``.
    multiprocessors : int
        Of the device.
    clock_khz, memory_khz, bus_bits : int
        Highest clock of the multiprocessors and of the memory, width of its bus; 0: not said.
    driver : str
        The version of CUDA that the driver has, ``13.0``.
    """

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock_khz: int
    memory_khz: int
    bus_bits: int
    driver: str


def hardware(index: int) -> Hardware:
    """What the driver says of a device; takes nothing of it, as `device` does.

    Raises
    ------
    ArtifactError
        There is no driver, or it does not know the device.
    """
    driver = _driver()
    handle, value, name = _i32(), _i32(), ctypes.create_string_buffer(256)
    driver.call("cuDeviceGet", ctypes.byref(handle), index)
    driver.call("cuDeviceGetName", name, len(name), handle)

    def attribute(number: int) -> int:
        driver.call("cuDeviceGetAttribute", ctypes.byref(value), number, handle)
        return value.value

    capability = (attribute(_MAJOR), attribute(_MINOR))
    count, clock, memory, bus = map(
        attribute, (_MULTIPROCESSORS, _CLOCK_KHZ, _MEMORY_KHZ, _BUS_BITS)
    )
    driver.call("cuDriverGetVersion", ctypes.byref(value))
    major, minor = divmod(value.value, 1000)
    text = name.value.decode(errors="replace")
    return Hardware(index, text, capability, count, clock, memory, bus, f"{major}.{minor // 10}")


class Device:
    """One CUDA device and its primary context, which is held from then on.

    Attributes
    ----------
    index : int
        As the driver counts them.
    name : str
        NVIDIA's name of it.
    capability : tuple of int
        Compute capability, ``(8, 0)``.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self._driver = _driver()
        about = hardware(index)
        self.name, self.capability = about.name, about.capability
        handle = _i32()
        self._driver.call("cuDeviceGet", ctypes.byref(handle), index)
        self._context = ctypes.c_void_p()
        self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), handle)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device's context current; the caller's is there again afterwards."""
        _driver().call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """The context, and no harm to what any thread captures into a graph."""
        mode = _i32(_RELAXED)
        with self.current():
            self._driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            try:
                yield
            finally:
                self._driver.call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))

    def allocate(self, size: int) -> Memory:
        """Uninitialised memory, aligned to 256 bytes.

        Raises
        ------
        InputError
            There is not enough.
        """
        pointer = _u64()
        try:
            with self._apart():
                self._driver.call("cuMemAlloc_v2", ctypes.byref(pointer), max(1, size))
        except (ArtifactError, InputError):
            if pointer.value:  # it is there, and what comes after it failed
                _free(self, pointer.value, os.getpid())
            raise
        return Memory(self, pointer.value, size)

    def free(self, pointer: int) -> None:
        """Give memory back; the driver waits for work that uses it."""
        with self._apart():
            self._driver.call("cuMemFree_v2", pointer)

    def upload(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy from host memory, in the order of the stream; waits until the source is read."""
        with self.current():
            self._driver.call("cuMemcpyHtoDAsync_v2", to, source, size, stream)
            self._driver.call("cuStreamSynchronize", stream)

    def download(self, to: int, source: int, size: int, stream: int) -> None:
        """Copy to host memory after all work of the stream; waits for it."""
        with self.current():
            self._driver.call("cuMemcpyDtoHAsync_v2", to, source, size, stream)
            self._driver.call("cuStreamSynchronize", stream)

    def synchronize(self, stream: int | None = None) -> None:
        """Wait for the work of a stream, or of the whole device."""
        with self.current():
            if stream is None:
                self._driver.call("cuCtxSynchronize")
            else:
                self._driver.call("cuStreamSynchronize", stream)

    def is_captured(self, stream: int) -> bool:
        """Whether the stream is being captured into a graph."""
        status = _i32()
        with self.current():
            # The default stream cannot be captured, and asking fails while others are.
            if stream <= 1:
                return False
            self._driver.call("cuStreamIsCapturing", stream, ctypes.byref(status))
        return status.value != 0

    def order(self, first: int, then: int) -> None:
        """Let the stream ``then`` wait for the work that ``first`` has now."""
        if max(first, 1) == max(then, 1):
            return
        event = ctypes.c_void_p()
        with self.current():
            self._driver.call("cuEventCreate", ctypes.byref(event), _NO_TIMING)
            try:
                self._driver.call("cuEventRecord", event, first)
                self._driver.call("cuStreamWaitEvent", then, event, 0)
            finally:
                self._driver.call("cuEventDestroy_v2", event)


class Memory:
    """Memory of a device, freed when this object dies."""

    def __init__(self, owner: Device, pointer: int, size: int) -> None:
        self.owner, self.pointer, self.size = owner, pointer, size
        # An interpreter that ends gives everything back anyway, and has no modules left to do it.
        weakref.finalize(self, _free, owner, pointer, os.getpid()).atexit = False


def _free(owner: Device, pointer: int, process: int) -> None:
    """Give memory back, but not in a forked child, which has no CUDA."""
    if process == os.getpid():
        with contextlib.suppress(ArtifactError, InputError):
            owner.free(pointer)


@lru_cache(maxsize=64)
def device(index: int) -> Device:
    """The device of an index.

    Raises
    ------
    ArtifactError
        There is no driver, or it does not work.
    InputError
        There is no such device.
    """
    count = device_count()
    if not 0 <= index < count:
        raise InputError(f"Expected a CUDA device below {count}. Received: device={index}")
    return Device(index)
