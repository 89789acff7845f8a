"""Layers on a CUDA device, beside PyTorch's cuDNN: ``python -m benchmarks.cuda --help``.

Both get the same numbers on the device. A call is timed in a CUDA graph of many calls, by CUDA's
events: the time of the device alone. PyTorch runs with cuDNN's own search, in both memory layouts,
and the faster one counts; TF32 is off, but where it is named.

``--build DIR`` compiles only, and needs no device; ``--artifacts DIR`` measures what was built so,
and needs no compiler.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.child import ROOT
from benchmarks.workloads import QUICK, Workload, named
from tvmconv.runtime import cuda_driver

__all__ = ["DTYPES", "build", "driver_version", "element", "main", "reason", "table"]

DTYPES = ("float32", "float16", "bfloat16", "tf32", "toom-cook")
"""What is timed. ``tf32`` and ``toom-cook`` are float32 layers compiled with ``--precision tf32``
(PyTorch has TF32 on beside them) and with ``--algorithm toom-cook``, where it serves them."""

#: What is compiled for those two; and whose peak the latter has.
_FLOAT32: dict[str, dict[str, str]] = {
    "tf32": {"precision": "tf32"}, "toom-cook": {"algorithm": "toom-cook"}
}  # fmt: skip
_DOCS = ROOT / "docs" / "cuda.md"


def main(arguments: list[str] | None = None) -> int:
    """Time the layers; print a table, and the geometric means of the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--layers", default=",".join(QUICK), help="names with commas, or all")
    parser.add_argument("--dtypes", default="float32,float16", help=f"of {', '.join(DTYPES)}")
    parser.add_argument("--target", default="cuda:native")
    parser.add_argument("--build", type=Path, metavar="DIR", help="compile into DIR, time nothing")
    parser.add_argument("--artifacts", type=Path, metavar="DIR", help="time what is in DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put FILE's table into the docs")
    asked = parser.parse_args(arguments)
    dtypes = asked.dtypes.split(",")
    try:
        works = named(None if asked.layers == "all" else asked.layers.split(","), nightly=True)
    except ValueError as exc:
        parser.error(str(exc))
    if not set(dtypes) <= set(DTYPES):
        parser.error(f"--dtypes: expected some of {', '.join(DTYPES)}")
    if asked.docs:
        found = json.loads(asked.docs.read_text(encoding="utf-8"))
        absent = report.update(_DOCS, {"cuda-times": table(found)})
        assert not absent, absent
        return 0
    if asked.build:
        build(works, dtypes, asked.target, asked.build)
        return 0
    missing = reason()
    if missing:
        sys.stderr.write(f"benchmarks.cuda: error: nothing can be timed here: {missing}\n")
        return 2
    found = _measured(works, dtypes, asked.target, asked.artifacts)
    print(table(found))
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def build(works: list[Workload], dtypes: list[str], target: str, folder: Path) -> None:
    """Compile the layers, weights left to the caller, into ``folder/LAYER-DTYPE``."""
    import tvmconv
    from benchmarks.tvmconv_runner import layer_of
    from tvmconv.errors import ConfigError

    for dtype in dtypes:
        for work in works:
            layer = tvmconv.Conv3DTranspose.from_config(
                {**layer_of(work).get_config(), "dtype": element(dtype)}
            )
            layer.build(work.input_shape)
            try:
                tvmconv.compile(
                    layer, work.input_shape, target=target, weights="external",
                    output=folder / f"{work.name}-{dtype}", **_FLOAT32.get(dtype, {}),
                )  # fmt: skip
            except ConfigError as exc:
                if dtype != "toom-cook":
                    raise
                sys.stderr.write(f"{work.name}: {exc}\n")


def element(dtype: str) -> str:
    """The dtype of the arrays of one of `DTYPES`."""
    return "float32" if dtype in _FLOAT32 else dtype


def table(found: dict[str, Any]) -> str:
    """The figures in Markdown: the slowest beside PyTorch first."""
    peak = found["peak"]
    peaks = ", ".join(f"{name} {value:,.0f} TFLOP/s" for name, value in peak["tflops"].items())
    lines = [
        f"{found['device']}, driver {found['driver']}, PyTorch {found['torch']}, cuDNN "
        f"{found['cudnn']}, {found['date']}. Measured in the same run: matrix products of 8192^3 "
        f"{peaks}; a copy {peak['copy_gbs']:,.0f} GB/s (read and written). Microseconds.",
    ]
    for dtype in DTYPES:
        rows = [row for row in found["rows"] if row["dtype"] == dtype]
        if not rows:
            continue
        rows.sort(key=lambda row: row["ratio"])
        mean = statistics.geometric_mean(row["ratio"] for row in rows)
        won = sum(row["ratio"] > 1 for row in rows)
        tf32 = dtype == "float32"
        lines += [
            "",
            f"**{dtype}**: geometric mean of the ratios {mean:.2f}; faster on {won} of {len(rows)} "
            "layers.",
            "",
            "| layer | form | tvmconv | PyTorch | ratio |"
            + (" PyTorch, TF32 |" if tf32 else "")
            + " TFLOP/s | of the peak | of the copy | error |",
            "|---|---|---|---|---|" + ("---|" if tf32 else "") + "---|---|---|---|",
        ]
        for row in rows:
            extra = f" {row['torch_tf32_us']:,.1f} |" if tf32 else ""
            speed = row["flops"] / row["us"] / 1e6
            moved = row["bytes"] / row["us"] / 1e3
            most = peak["tflops"]["float32" if dtype == "toom-cook" else dtype]
            lines.append(
                f"| {row['layer']} | {row['form']} | {row['us']:,.1f} | {row['torch_us']:,.1f} | "
                f"{row['ratio']:.2f} |{extra} {speed:,.1f} | {speed / most:.0%} | "
                f"{moved / peak['copy_gbs']:.0%} | {row['error']:.0e} |"
            )
    return "\n".join(lines)


def driver_version(told: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The driver's version, where it says so, and CUDA's that it supports."""
    cuda = f"CUDA {cuda_driver.hardware(0).driver}"
    try:
        found = re.search(r"Kernel Module .*?(\d+(?:\.\d+)+) ", told.read_text(encoding="utf-8"))
    except OSError:
        found = None
    return f"{found[1]} ({cuda})" if found else f"for {cuda}"


def reason() -> str:
    """Why nothing can be timed here; empty if something can."""
    missing = cuda_driver.unavailable()
    if missing:
        return missing
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "this PyTorch is built without CUDA"


def _measured(
    works: list[Workload], dtypes: list[str], target: str, artifacts: Path | None
) -> dict[str, Any]:
    """All figures: what `table` takes."""
    import torch

    from benchmarks import cuda_times

    version, driver = torch.backends.cudnn.version() or 0, torch.cuda.get_device_properties(0)
    found: dict[str, Any] = {
        "device": driver.name,
        "driver": driver_version(),
        "torch": str(torch.__version__),
        "cudnn": f"{version // 10000}.{version // 100 % 100}",
        "date": date.today().isoformat(),
        "peak": cuda_times.peaks(),
        "rows": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = artifacts or Path(temporary)
        if artifacts is None:
            build(works, dtypes, target, folder)
        for work in works:
            for row in cuda_times.rows(work, dtypes, folder):
                found["rows"].append(row)
                line = f"{row['layer']:<14}{row['dtype']:<10}{row['us']:>10.1f}"
                sys.stderr.write(f"{line}{row['torch_us']:>10.1f}{row['ratio']:>8.2f}\n")
    assert all(math.isfinite(row["us"]) for row in found["rows"])
    return found


if __name__ == "__main__":
    sys.exit(main())
