"""What measures: the processor of this machine, or of another one by what it says."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

__all__ = ["machine", "model_of"]


def machine() -> dict[str, Any]:
    """What measures: the processor's model and the cores that this process may use."""
    from tvmconv.targets import usable_cores

    told = ""
    with contextlib.suppress(OSError):
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = model_of(told) or platform.processor() or platform.machine()
    return {"cpu_model": model, "cores": usable_cores()}


def model_of(cpuinfo: str) -> str:
    """The model of the processor in Linux' ``/proc/cpuinfo``; empty where it says none."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Processor", "uarch", "Model"):
            return value.strip()
    return ""
