"""What the figures were measured on, and how quiet it was."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Watch", "available_bytes", "cores", "describe", "settle", "warnings"]

# Load average above which the machine was busy before the benchmark began.
_BUSY_LOAD = 0.5
# Share of the processors' time that others may take.
_BUSY_SHARE = 0.02
_FLAGS = re.compile(r"sse4_2|avx|fma|f16c|amx|bmi2|asimd|neon|sve|rvv|vector")


def describe() -> dict[str, Any]:
    """The machine, its software and the date; nothing that names its owner."""
    info = _read("/proc/cpuinfo")
    model = re.search(r"^(?:model name|Model|uarch)\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features|isa)\s*:\s*(.+)$", info, re.MULTILINE)
    names = flags[1].split() if flags else []
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return {
        "cpu": model[1].strip() if model else platform.processor() or platform.machine(),
        "cpu_family": _number(info, "cpu family"),
        "cpu_model": _number(info, "model"),
        "flags": sorted(name for name in names if _FLAGS.match(name)),
        "cores": cores(),
        "caches": _caches(),
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "hypervisor": "hypervisor" in names,
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled").strip(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def available_bytes() -> int:
    """Memory that can be taken now."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 1 << 33


def settle(most_s: float, say: Callable[[str], None]) -> bool:
    """Wait until the machine is quiet enough to begin.

    Parameters
    ----------
    most_s
        How long to wait at most, in seconds.
    say
        Gets one line if there is something to wait for.

    Returns
    -------
    bool
        Whether the load average is low enough now. It forgets within a few minutes what was before.
    """
    end = time.monotonic() + most_s
    if os.getloadavg()[0] > _BUSY_LOAD and most_s > 0:
        say(f"load average {os.getloadavg()[0]:.2f}: waiting up to {most_s:.0f} s for {_BUSY_LOAD}")
    while os.getloadavg()[0] > _BUSY_LOAD and time.monotonic() < end:
        time.sleep(min(2.0, max(0.0, end - time.monotonic())))
    return os.getloadavg()[0] <= _BUSY_LOAD


@dataclass
class Watch:
    """Load averages, and who else used the processors while the benchmark ran."""

    load_at_start: float
    busy_s: float
    stolen_s: float
    elapsed_s: float

    @classmethod
    def start(cls) -> Watch:
        """Begin to watch."""
        busy, stolen, elapsed = _processor_seconds()
        return cls(os.getloadavg()[0], busy - _own_seconds([]), stolen, elapsed)

    def stop(self, workers: list[int]) -> dict[str, Any]:
        """What was seen; ``workers`` are the processes of the benchmark that still live."""
        busy, stolen, elapsed = _processor_seconds()
        total = max(elapsed - self.elapsed_s, 1e-9)
        others = (busy - _own_seconds(workers) - self.busy_s) / total
        stolen_share = (stolen - self.stolen_s) / total
        found: dict[str, Any] = {
            "load_at_start": round(self.load_at_start, 2),
            "load_at_end": round(os.getloadavg()[0], 2),
            "others_share": round(max(others, 0.0), 4),
            "stolen_share": round(stolen_share, 4),
        }
        found["warnings"] = warnings(found)
        return found


def warnings(noise: dict[str, Any]) -> list[str]:
    """Why figures that were taken amid ``noise``, as `Watch.stop` gives it, are doubtful."""
    found = []
    if noise["load_at_start"] > _BUSY_LOAD:
        found.append(f"the load average was {noise['load_at_start']:.2f} before the first call")
    if noise["others_share"] > _BUSY_SHARE:
        found.append(f"other processes took {noise['others_share']:.0%} of the processors' time")
    if noise["stolen_share"] > _BUSY_SHARE:
        found.append(f"the hypervisor took {noise['stolen_share']:.0%} of the processors' time")
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _number(info: str, name: str) -> int | None:
    found = re.search(rf"^{name}\s*:\s*(\d+)$", info, re.MULTILINE)
    return int(found[1]) if found else None


def _caches() -> list[str]:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size, shared = (
            _read(f"{folder}/{name}").strip()
            for name in ("level", "type", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            found.append(f"L{level} {size} (processors {shared})")
    return found


def _processor_seconds() -> tuple[float, float, float]:
    """Busy, stolen and all seconds of all processors since the machine started."""
    ticks = os.sysconf("SC_CLK_TCK")
    values = [int(field) / ticks for field in _read("/proc/stat").split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, waiting, interrupts, soft, stolen = values or [0.0] * 8
    busy = user + nice + system + interrupts + soft
    return busy, stolen, busy + stolen + idle + waiting


def _own_seconds(workers: list[int]) -> float:
    """Processor time of this process, of its ended children and of the live ones."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for worker in workers:
        fields = _read(f"/proc/{worker}/stat").rpartition(")")[2].split()
        if fields:
            total += sum(int(ticks) for ticks in fields[11:13]) / os.sysconf("SC_CLK_TCK")
    return total
