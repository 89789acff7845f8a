"""Arrays on a device as other libraries have them: a minimal one for each protocol."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tvmconv.runtime import cuda_driver


class Foreign:
    """Somebody's array on a device, with one protocol or the other."""

    def __init__(self, values: np.ndarray, device: int = 0) -> None:
        self.device = cuda_driver.device(device)
        self.memory = self.device.allocate(values.nbytes)
        self.shape, self.dtype = values.shape, values.dtype
        self.offset, self.steps = 0, [step // values.itemsize for step in values.strides]
        source = np.ascontiguousarray(values)
        self.device.upload(self.memory.pointer, source.ctypes.data, source.nbytes, 2)

    def values(self) -> np.ndarray:
        found = np.empty(self.shape, self.dtype)
        self.device.download(found.ctypes.data, self.memory.pointer, found.nbytes, 2)
        return found


class Interface(Foreign):
    """With __cuda_array_interface__."""

    stream: int | None = None
    changes: dict[str, Any]

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.memory.pointer + self.offset, False),
            "strides": None,
            "version": 3,
            "stream": self.stream,
            **getattr(self, "changes", {}),
        }


class Tensor(ctypes.Structure):
    """DLManagedTensor, as dlpack.h has it."""

    _fields_ = [
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
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    ]


new_capsule = ctypes.pythonapi.PyCapsule_New
new_capsule.restype = ctypes.py_object
new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
get_pointer.restype = ctypes.c_void_p
get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
set_name = ctypes.pythonapi.PyCapsule_SetName
set_name.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Pack(Foreign):
    """With __dlpack__: a minimal producer."""

    bits = 32
    streams: list[int]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device.index

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.streams = [*getattr(self, "streams", []), -2 if stream is None else stream]
        n = len(self.shape)
        self.kept = Tensor(
            self.memory.pointer, 2, self.device.index, n, 2, self.bits, 1,
            (ctypes.c_int64 * n)(*self.shape), (ctypes.c_int64 * n)(*self.steps), self.offset,
        )  # fmt: skip
        return new_capsule(ctypes.addressof(self.kept), b"dltensor", None)
