"""How long a program waits for its first result: ``python -m benchmarks.startup``.

A C program opens the library of a layer and calls it, in a process of its own each time; the file
is in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.child import ROOT
from benchmarks.measure import build
from benchmarks.report import table
from benchmarks.workloads import Workload, named

__all__ = ["main"]

_SOURCE = ROOT / "tests" / "c" / "startup.c"
#: 8 x 8 x 8 voxels, 64 channels to 32: the first layer of examples/decoder.keras.
_SMALL = Workload("small", "decoder.keras", 64, 32, (2, 2, 2), (2, 2, 2), "valid", (8, 8, 8))
_LIMIT_MS = 5.0
_LIMIT_MB = 1.0


def _measured(work: Workload, program: Path, folder: Path, repeats: int) -> dict[str, Any]:
    built = build(work, "auto", folder / work.name)
    if "reason" in built:
        return {"reason": built["reason"]}
    library = folder / work.name / f"lib{work.name}.so"
    sizes = [4 * math.prod(shape) for shape in (work.input_shape, work.output_shape)]
    command = [str(program), str(library), work.name, *map(str, sizes)]
    found = []
    for _ in range(repeats + 1):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"reason": done.stderr.strip()}
        found.append(json.loads(done.stdout))
    return {
        "bytes": library.stat().st_size,
        "open_ms": statistics.median(one["open_ms"] for one in found[1:]),
        "first_ms": statistics.median(one["first_ms"] for one in found[1:]),
        "slowest_ms": max(one["first_ms"] for one in found[1:]),
        "rss_kib": max(one["rss_kib"] for one in found[1:]),
        "threads": found[-1]["threads"],
    }


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup")
    parser.add_argument("--layers", default="", help="also these layers of the benchmark")
    parser.add_argument("--repeats", type=int, default=21, help="processes for each layer")
    args = parser.parse_args()
    compiler = shutil.which("cc")
    if compiler is None:
        print("a C compiler is needed", file=sys.stderr)
        return 1
    works = [_SMALL, *named([name for name in args.layers.split(",") if name])]
    rows = []
    with tempfile.TemporaryDirectory(prefix="tvmconv-startup-") as name:
        folder = Path(name)
        program = folder / "startup"
        subprocess.run([compiler, "-O1", _SOURCE, "-o", program, "-ldl"], check=True)
        for work in works:
            found = _measured(work, program, folder, max(1, args.repeats))
            if "reason" in found:
                rows.append([work.name, found["reason"], *[""] * 5])
                continue
            rss, size = found["rss_kib"] * 1024 / 1e6, found["bytes"] / 1e6
            rows.append(
                [
                    work.name, f"{size:.2f}", f"{found['open_ms']:.2f}", f"{found['first_ms']:.2f}",
                    f"{found['slowest_ms']:.2f}", f"{rss:.2f}",
                    " / ".join(map(str, found["threads"])),
                ]
            )  # fmt: skip
    header = [
        "layer", "library, MB", "dlopen, ms", "first result, ms", "slowest",
        "resident after dlopen, MB", "threads: opened / one / two",
    ]  # fmt: skip
    print(table(header, rows))
    print(
        f"\nWanted: the small layer's first result within {_LIMIT_MS:g} ms, resident memory at "
        f"most the library's size and {_LIMIT_MB:g} MB, no thread before a call with two."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
