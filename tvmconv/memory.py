"""Whether a layer's arrays fit into this machine: asked before any of them is made."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tvmconv.errors import ConfigError
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.geometry import Plan

__all__ = ["available", "check", "needed"]


def check(plan: Plan, dtype: str) -> None:
    """Refuse a layer whose arrays this machine cannot hold, as the check of its library must.

    Raises
    ------
    ConfigError
        They are larger than the memory that this process may use.
    """
    bytes_needed, memory = needed(plan, dtype), available()
    if memory is not None and bytes_needed > memory:
        shape = ",".join("?" if size < 0 else str(size) for size in plan.input_shape)
        raise ConfigError(
            f"The input shape {shape} needs {bytes_needed / 1e9:.1f} GB for input, output and "
            f"kernel, this machine has {memory / 1e9:.1f} GB."
        )


def needed(plan: Plan, dtype: str) -> int:
    """Bytes of input, output and kernel; an open batch counts one sample."""
    elements = sum(
        math.prod(1 if size < 0 else size for size in shape)
        for shape in (plan.input_shape, plan.output_shape, plan.kernel_shape)
    )
    return elements * numpy_dtype(dtype).itemsize


def available() -> int | None:
    """The memory that this process may use, in bytes; None where the system does not tell."""
    found = []
    with suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("memory.max", "memory/memory.limit_in_bytes"):  # a container's
        with suppress(ValueError, OSError):
            found.append(int((Path("/sys/fs/cgroup") / limit).read_text()))
    return min(found, default=None)
