"""What measures: the processor of this machine, or of another one by what it says."""

from __future__ import annotations

import contextlib
import platform
from pathlib import Path
from typing import Any

__all__ = ["machine", "model_of", "shown"]


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


def shown(about: dict[str, Any]) -> str:
    """What measured, for people; ``about`` is a record's ``machine``."""
    model, count = about.get("cpu_model", "unknown"), about.get("cores", "?")
    if count == 0:
        return str(model)
    if "driver" not in about:
        return f"{model}, {count} cores"
    return f"{model}, {count} multiprocessors, CUDA {about['driver']}"
