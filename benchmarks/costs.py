"""What tvmconv costs beside the computation: start, load, call, compile, disk and memory."""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.child import ROOT, Child, Silence, installed
from benchmarks.measure import build
from benchmarks.report import table
from benchmarks.workloads import Workload

__all__ = ["Cost", "measure", "rendered"]

#: Scratch of all threads that the direct forms may take, or a share of the tensors, and of each
#: thread that Toom-Cook may.
_LEAST_EXTRA, _THREAD_EXTRA = 4 << 20, 16 << 20
_SHARE_EXTRA = 0.05
# The smallest layer there is: its time is that of the call.
_TINY = Workload("tiny", "one voxel", 1, 1, (1, 1, 1), (1, 1, 1), "valid", (1, 1, 1))
_IMPORT = """
import time
start = time.perf_counter()
import tvmconv
print(time.perf_counter() - start)
"""
_LOAD = """
import sys, time
if sys.argv[2] == "numpy":
    import numpy
import tvmconv
start = time.perf_counter()
tvmconv.load(sys.argv[1])
print(time.perf_counter() - start)
"""
_CALL = """
import sys, time
import numpy, tvmconv
layer = tvmconv.load(sys.argv[1], threads=int(sys.argv[2]))
x = numpy.ones(layer.input_shape, numpy.float32)
out = layer(x) if sys.argv[3] == "out" else None
best = []
for _ in range(200):
    start = time.perf_counter()
    for _ in range(100):
        layer(x, out)
    best.append((time.perf_counter() - start) / 100)
print(sorted(best)[len(best) // 2])
"""
# The pool alone: its tasks are free(NULL), which does nothing.
_POOL = """
import ctypes, sys, time
lib = ctypes.CDLL(sys.argv[1])
run = lib.tiny_parallel_for
pointer = ctypes.c_void_p
run.restype, run.argtypes = None, (pointer, ctypes.c_int32, pointer, pointer)
free = ctypes.cast(ctypes.CDLL(None).free, pointer)
def of(tasks):
    best = []
    for _ in range(200):
        start = time.perf_counter()
        for _ in range(100):
            run(None, tasks, free, None)
        best.append((time.perf_counter() - start) / 100)
    return sorted(best)[len(best) // 2]
of(2)
if sys.argv[3] == "launch":
    print(of(int(sys.argv[2])) - of(1))
else:
    # Linux counts what other threads ran at their next tick or sleep: let them sleep once.
    time.sleep(0.3)
    run(None, int(sys.argv[2]), free, None)
    start = time.process_time()
    time.sleep(0.3)
    print(time.process_time() - start)
"""


@dataclass(frozen=True)
class Cost:
    """One figure, with the limit that it should stay under."""

    what: str
    value: float | None
    limit: float
    unit: str
    reason: str = ""

    @property
    def met(self) -> bool:
        """Whether it stays under its limit."""
        return self.value is not None and self.value <= self.limit


def measure(works: list[Workload], say: Callable[[str], None], repeats: int = 9) -> dict[str, Any]:
    """Every cost; layers are compiled for `works`.

    Parameters
    ----------
    works
        The layers whose compilation, size and memory are measured.
    say
        Gets lines that show how far it is.
    repeats
        Processes that are started for a median.
    """
    watch = machine.Watch.start()
    say("import")
    costs = [Cost("import tvmconv", _median(repeats, _IMPORT), 0.2, "s")]
    with tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as name:
        folder = Path(name)
        say("call of a layer with one voxel")
        built = build(_TINY, "auto", folder / "tiny")
        for how, limit in (("out", 20.0), ("new", 20.0)):
            text = "into the caller's array" if how == "out" else "into a new array"
            seconds = _median(3, _CALL, str(folder / "tiny"), "1", how)
            value = None if seconds is None else seconds * 1e6
            costs.append(Cost(f"a call of a layer with one voxel, {text}", value, limit, "us"))
        say("threads")
        library, cores = str(folder / "tiny" / "libtiny.so"), str(machine.cores())
        launch = _median(3, _POOL, library, cores, "launch")
        what = "launch of all threads, awake"
        costs.append(Cost(what, None if launch is None else launch * 1e6, 5, "us"))
        idle = _median(repeats, _POOL, library, cores, "idle")
        what = "processor time of all threads while idle, after a call"
        costs.append(Cost(what, _thousandfold(idle), 1, "ms"))
        for work in works:
            say(work.name)
            costs += _of_layer(work, folder, repeats)
        if "reason" in built:
            costs.append(Cost("compile a layer with one voxel", None, 10, "s", built["reason"]))
    return {
        "format": "tvmconv-costs",
        "version": 1,
        "machine": machine.describe(),
        "noise": watch.stop([]),
        "costs": [{**dataclasses.asdict(cost), "met": cost.met} for cost in costs],
    }


def _of_layer(work: Workload, folder: Path, repeats: int) -> list[Cost]:
    name = work.name
    baked = build(work, "auto", folder / name)
    if "reason" in baked:
        return [Cost(f"{name}: compile, with the start of Python", None, 10, "s", baked["reason"])]
    external = build(work, "auto", folder / f"{name}-external", weights="external")
    size = external.get("library_bytes")
    fresh = _median(repeats, _LOAD, str(folder / name), "nothing")
    loaded = _median(repeats, _LOAD, str(folder / name), "numpy")
    costs = [
        Cost(f"{name}: compile, with the start of Python", baked["seconds"], 10, "s"),
        Cost(f"{name}: library without weights", size and size / 1e3, 150, "kB"),
        Cost(f"{name}: load, numpy imported", _thousandfold(loaded), 50, "ms"),
        Cost(f"{name}: load and the import of numpy", _thousandfold(fresh), 250, "ms"),
    ]
    needed = 4 * math.prod(work.output_shape) + baked["packed_bytes"]
    whole = needed + 4 * math.prod(work.input_shape)
    limit = max(_SHARE_EXTRA * whole, _LEAST_EXTRA)
    if baked["algorithm"] == "toom-cook":
        limit = max(limit, _THREAD_EXTRA * machine.cores())
    added, reason = _memory(work, folder / name)
    extra = None if added is None else max(0, added - needed) / 1e6
    what = f"{name}: memory of a call beyond input, output and packed weights"
    costs.append(Cost(what, extra, limit / 1e6, "MB", reason))
    return costs


def _thousandfold(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _memory(work: Workload, artifact: Path) -> tuple[int | None, str]:
    """Bytes that the first call adds to a process that holds the input, with all threads."""
    try:
        child = Child("tvmconv_runner:New@auto", machine.cores())
    except Silence as exc:
        return None, str(exc)
    try:
        found = child.ask("prepare", work=dataclasses.asdict(work), artifact=str(artifact))
    except Silence as exc:
        return None, str(exc)
    finally:
        child.close()
    return found.get("added_bytes"), found.get("reason", "")


def _median(repeats: int, program: str, *arguments: str) -> float | None:
    """Median of what fresh processes print, after one that fills the file caches."""
    values = []
    for _ in range(repeats + 1):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env=installed(),
        )
        if done.returncode:
            return None
        values.append(float(done.stdout))
    return statistics.median(values[1:])


def rendered(record: dict[str, Any]) -> str:
    """The costs as a table."""
    body = []
    for cost in record["costs"]:
        value = cost["reason"] or "failed" if cost["value"] is None else f"{cost['value']:.3g}"
        unit = cost["unit"]
        body.append(
            [cost["what"], value, f"{cost['limit']:.3g}", unit, "yes" if cost["met"] else "NO"]
        )
    lines = [table(["cost", "measured", "at most", "unit", "met"], body)]
    lines += [
        f"WARNING: {text}; the figures are not to be trusted."
        for text in record["noise"]["warnings"]
    ]
    return "\n\n".join(lines)
