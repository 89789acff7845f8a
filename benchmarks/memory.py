"""Memory of this process, from Linux's own counters."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["peak_of", "resident"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def _field(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def resident() -> int:
    """Bytes resident now."""
    return _field("VmRSS")


def peak_of(call: Callable[[], Any]) -> int | None:
    """Bytes that a call adds to the resident memory at its peak; None if the system is silent."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if (
        trim is not None
    ):  # what an earlier layer left in the allocator would hide what this one needs
        trim(0)
    try:
        _CLEAR.write_text(_RESET_PEAK)
        before = resident()
    except OSError:
        call()
        return None
    call()
    return max(0, _field("VmHWM") - before)
