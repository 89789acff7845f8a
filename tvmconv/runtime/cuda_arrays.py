"""Arrays on CUDA devices, of others and of our own: DLPack and ``__cuda_array_interface__``."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tvmconv.config import numpy_dtype
from tvmconv.errors import InputError
from tvmconv.runtime import cuda_driver
from tvmconv.runtime.call import address
from tvmconv.runtime.cuda_driver import Memory
from tvmconv.runtime.torch_cuda import current_stream, dense_in, torch_of

__all__ = ["DeviceArray", "View", "device_of", "on_device", "stream_of", "view"]

_CUDA, _CUDA_MANAGED = 2, 13  # DLDeviceType; pinned host memory (3) is the host's
_DTYPES: Final = {
    (2, 64): "float64", (2, 32): "float32", (2, 16): "float16", (4, 16): "bfloat16",
}  # fmt: skip
_CODES: Final = {name: code for code, name in _DTYPES.items()}
_READ_ONLY: Final = 1


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (
        ("tensor", _Tensor),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


_api = ctypes.pythonapi
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
# The destructor of a capsule gets an object that is being destroyed: as a number, not a reference.
_Destructor = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_is_valid_at = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer_at = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
_new_capsule = ctypes.PYFUNCTYPE(
    ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p
)(("PyCapsule_New", _api))


@dataclass(frozen=True)
class View:
    """Somebody's array on a device.

    Attributes
    ----------
    pointer : int
        Where its first element is.
    shape : tuple of int
    dtype : str
        ``float32``, or what it calls itself where it is no type of ours.
    dense : bool
        Whether it is in C order without gaps.
    read_only : bool
    stream : int or None
        A stream with work that the array still waits for.
    owner : object
        Keeps the memory alive.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    dense: bool
    read_only: bool
    stream: int | None
    owner: object

    @property
    def nbytes(self) -> int:
        """Bytes of a dense array of this shape."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


def on_device(x: Any) -> bool:
    """Whether an array says that it is in the memory of a CUDA device."""
    if isinstance(x, np.ndarray):
        return False
    if torch_of(x) is not None:
        return bool(x.is_cuda)
    if hasattr(type(x), "__dlpack_device__"):
        try:
            return int(x.__dlpack_device__()[0]) in (_CUDA, _CUDA_MANAGED)
        except (TypeError, ValueError, RuntimeError, BufferError):
            return False
    return getattr(x, "__cuda_array_interface__", None) is not None


def device_of(x: Any) -> int:
    """The index of the CUDA device that an array is on."""
    if torch_of(x) is not None:
        return int(x.device.index)
    if hasattr(type(x), "__dlpack_device__"):
        return int(x.__dlpack_device__()[1])
    pointer = int(x.__cuda_array_interface__["data"][0] or 0)
    return cuda_driver.home(pointer) if pointer else 0


def view(x: Any, stream: int) -> View:
    """The array ``x``, ready for work on ``stream``: its producer lets the stream wait if need be.

    Raises
    ------
    InputError
        The array does not give itself away, as one with a gradient does not.
    """
    torch = torch_of(x)
    if torch is not None:
        pointer, shape, dtype, dense = dense_in(x, torch)
        queued = current_stream(torch, x.device.index)
        return View(pointer, shape, dtype, dense, False, queued, x)
    if hasattr(type(x), "__dlpack__"):
        try:
            capsule = x.__dlpack__(stream=max(stream, 1))  # 0 has no meaning there
        except (BufferError, RuntimeError, TypeError, ValueError) as exc:
            reason = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
            raise InputError(f"The array cannot be used through DLPack: {reason}") from exc
        return _from_capsule(capsule)
    return _from_interface(x, x.__cuda_array_interface__)


def _from_capsule(capsule: Any) -> View:
    # The capsule keeps its name: unused, it gives the tensor back when it dies.
    if _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_get_pointer(capsule, b"dltensor_versioned"))
        if versioned.major > 1:
            raise InputError(f"The array has DLPack version {versioned.major}, expected 1 at most.")
        tensor, read_only = versioned.tensor, bool(versioned.flags & _READ_ONLY)
    elif _is_valid(capsule, b"dltensor"):
        tensor, read_only = _Tensor.from_address(_get_pointer(capsule, b"dltensor")), False
    else:
        raise InputError("The array's __dlpack__ gave no DLPack capsule.")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    strides = [tensor.strides[i] for i in range(tensor.ndim)] if tensor.strides else None
    name = _DTYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    return View(
        (tensor.data or 0) + tensor.byte_offset,
        shape,
        name or f"DLPack type {tensor.code}, {tensor.bits} bits",
        _dense(shape, strides),
        read_only,
        None,
        capsule,
    )


def _from_interface(x: Any, interface: dict[str, Any]) -> View:
    try:
        pointer, read_only = interface["data"]
        shape = tuple(int(size) for size in interface["shape"])
        dtype = np.dtype(interface["typestr"])
        steps = interface.get("strides")
        strides = None if steps is None else [step / dtype.itemsize for step in steps]
        stream = interface.get("stream")
        stream = None if stream is None else int(stream)
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"The array's __cuda_array_interface__ is none: {exc!r}") from exc
    name = dtype.name if dtype.isnative else dtype.str
    dense = _dense(shape, strides)
    return View(int(pointer or 0), shape, name, dense, bool(read_only), stream, x)


def _dense(shape: Sequence[int], strides: Sequence[float] | None) -> bool:
    if strides is None or 0 in shape:
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def stream_of(stream: Any, x: Any, device: int) -> int:
    """The driver's handle of a stream: the caller's, or the current one of the array's framework.

    Raises
    ------
    InputError
        ``stream`` is nothing that has a handle.
    """
    if stream is None:
        # Asked of what is loaded already: nothing is imported.
        framework = type(x).__module__.partition(".")[0]
        cuda = getattr(sys.modules.get(framework), "cuda", None)
        if framework == "torch" and cuda is not None:
            return current_stream(sys.modules[framework], device)
        if framework == "cupy" and cuda is not None:
            return int(cuda.get_current_stream().ptr)
        return 0
    if isinstance(stream, int) and not isinstance(stream, bool) and stream >= 0:
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):  # torch, cupy, numba
        if hasattr(stream, name):
            found = getattr(stream, name)
            return int(getattr(found, "value", found) or 0)
    raise InputError(
        "Expected stream to be a CUDA stream of torch or cupy, or its handle as a number. "
        f"Received: {stream!r}"
    )


class DeviceArray:
    """An output on a CUDA device: dense, in C order, its memory freed with its last user.

    ``torch.from_dlpack(y)``, ``cupy.from_dlpack(y)`` and ``jax.dlpack.from_dlpack(y)`` take it
    without a copy; `numpy` copies it to the host. The layer may still be computing it: work that
    is queued on `stream` behind it sees the values, and so does everything that comes by one of
    the protocols.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    device : int
        Index of the CUDA device.
    stream : int
        The stream on which it is computed.
    pointer : int
        Where it is on the device.
    """

    def __init__(
        self,
        memory: Memory,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        stream: int,
        pool: list[Memory] | None = None,
    ) -> None:
        self._memory = memory
        # Where the memory goes for the next output on the stream, if nothing else may use it yet.
        self._pool = pool
        self.shape, self.dtype, self.stream = shape, dtype, stream
        self.pointer = memory.pointer
        self.device = memory.owner.index

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Version 3 of the interface; bfloat16 has no name there."""
        if self.dtype.name == "bfloat16":
            raise AttributeError("bfloat16 has no __cuda_array_interface__; use DLPack")
        self._pool = None  # whoever gets the pointer may use it on any stream
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": max(self.stream, 1),
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule; ``stream`` waits for the values (-1: the consumer sees to that)."""
        del max_version  # Every consumer takes the first version.
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("the array is given as it is and where it is; copy it afterwards")
        consumer = 1 if stream is None else stream
        if consumer >= 0:
            self._memory.owner.order(self.stream, consumer)
        if consumer != max(self.stream, 1):
            self._pool = None
        return _exported(self)

    def numpy(self) -> np.ndarray:
        """A copy in host memory; waits for the values."""
        values = np.empty(self.shape, self.dtype)
        if values.nbytes:
            self._memory.owner.download(address(values), self.pointer, values.nbytes, self.stream)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("the array is on a CUDA device: it cannot be had without a copy")
        values = self.numpy()
        return values if dtype is None else values.astype(dtype)

    def __del__(self) -> None:
        pool = self.__dict__.get("_pool")
        if pool is not None and not pool:  # one piece is kept
            pool.append(self._memory)

    def __repr__(self) -> str:
        return f"<DeviceArray {self.shape} {self.dtype.name} on cuda:{self.device}>"


class _Export:
    """The C structure of a capsule, and what it points to."""

    def __init__(self, array: DeviceArray) -> None:
        self.array = array
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        code, bits = _CODES[array.dtype.name]
        tensor = _Tensor(array.pointer, _CUDA, array.device, array.ndim, code, bits, 1)
        tensor.shape = self.shape
        self.managed = _Managed(tensor, None, ctypes.cast(_delete, ctypes.c_void_p))


#: What consumers hold, by the address of its structure.
_EXPORTS: Final[dict[int, _Export]] = {}


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(managed: int | None) -> None:
    _EXPORTS.pop(managed or 0, None)


@_Destructor
def _unused(capsule: int | None) -> None:
    if _is_valid_at(capsule, b"dltensor"):  # consumers rename what they take
        _EXPORTS.pop(_pointer_at(capsule, b"dltensor") or 0, None)


def _exported(array: DeviceArray) -> Any:
    export = _Export(array)
    place = ctypes.addressof(export.managed)
    _EXPORTS[place] = export
    return _new_capsule(place, b"dltensor", ctypes.cast(_unused, ctypes.c_void_p))
