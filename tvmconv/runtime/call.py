"""`Call`: what one call of a library needs besides the arrays, kept for the next one."""

from __future__ import annotations

import ctypes
import operator
from typing import Any, Final

import numpy as np

from tvmconv.errors import ConfigError

__all__ = ["Arguments", "Call", "address", "checked_threads"]

_MOST_THREADS: Final = 1024


class Arguments(ctypes.Structure):
    """NAME_args of the C interface."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_size", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("shape", ctypes.c_int32),
        ("batch", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    ]

    def __init__(self, **fields: Any) -> None:
        super().__init__(size=ctypes.sizeof(type(self)), **fields)


class Call:
    """The arguments and the workspace of one call at a time.

    Parameters
    ----------
    args
        Of this call alone.
    workspace_size
        Bytes of scratch memory, of any alignment.
    """

    def __init__(self, args: Arguments, workspace_size: int) -> None:
        self.args = args
        self.reference = ctypes.byref(self.args)
        if workspace_size:
            self.workspace = np.empty(workspace_size, np.uint8)
            self.args.workspace = address(self.workspace)
            self.args.workspace_size = workspace_size


def address(array: np.ndarray) -> int:
    """Where the first element is."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        # Read-only, empty or of a dtype that is no buffer's: three times as slow.
        return int(array.ctypes.data)


def checked_threads(threads: int | None) -> int:
    """A number of threads, 0 for None.

    Raises
    ------
    ConfigError
        It is no integer, or out of range.
    """
    if threads is None:
        return 0
    try:
        number = operator.index(threads)
    except TypeError:
        number = -1
    if not 0 <= number <= _MOST_THREADS:
        raise ConfigError(
            f"Expected threads from 0 to {_MOST_THREADS}. Received: threads={threads!r}"
        )
    return number
