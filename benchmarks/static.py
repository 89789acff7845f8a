"""The innermost loops for processors that are not here: ``python -m benchmarks.static``.

A layer is compiled for each target; its loop with most products is counted and given to llvm-mca,
a model of a core's decoder, ports and latencies, in which every load hits the first-level cache. A
model is not the core: its figures find spills and wasted instructions, and predict no time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from benchmarks.assembly import Loop, hottest
from benchmarks.child import ROOT
from benchmarks.report import table, update
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import named
from tvmconv import schedules, targets
from tvmconv.codegen import lowering
from tvmconv.compute import lower
from tvmconv.compute.workload import Workload

__all__ = ["MODELS", "Cycles", "cycles", "loop_of", "main"]

_DOCS = ROOT / "docs" / "edge.md"
_ITERATIONS = 100
#: Target -> the -mcpu of llvm-mca: where it has no model of the processor, one that is near.
MODELS = {
    "raspberry-pi-3": "cortex-a53", "raspberry-pi-4": "cortex-a72", "raspberry-pi-5": "cortex-a76",
    "cortex-a53": "cortex-a53", "cortex-a55": "cortex-a55", "cortex-a72": "cortex-a72",
    "cortex-a76": "cortex-a76", "cortex-a78": "cortex-a78", "neoverse-n1": "neoverse-n1",
    "neoverse-v1": "neoverse-n1", "graviton2": "neoverse-n1", "graviton3": "neoverse-n1",
    "jetson-orin-cpu": "cortex-a78", "apple-m1": "apple-m1", "x86-64-v2": "nehalem",
    "x86-64-v3": "haswell", "x86-64-v4": "skylake-avx512", "atom": "atom", "tremont": "tremont",
    "alderlake-e": "alderlake", "riscv64-rva22": "sifive-u74", "riscv64-rvv": "",
    "armv7-neon": "cortex-a57", "cortex-m7": "cortex-m7", "cortex-m55": "", "wasm32-simd": "",
}  # fmt: skip
_FEATURES = {"armv7": "+neon,+vfp4", "riscv64": "+m,+a,+f,+d,+c,+zba,+zbb"}


@dataclass(frozen=True)
class Cycles:
    """What llvm-mca says: cycles of one pass, and how many its arithmetic alone would take."""

    loop: float
    arithmetic: float

    @property
    def share(self) -> float:
        """The share of the core's peak of multiplications and additions."""
        return self.arithmetic / self.loop


def loop_of(layer: str, target: str, algorithm: str) -> Loop:
    """The hottest loop of a benchmark layer for a target."""
    (machine,) = targets.resolve(target)
    return _loop(layer, replace(machine, name=""), algorithm)


@lru_cache(maxsize=64)
def _loop(layer: str, machine: targets.CpuTarget, algorithm: str) -> Loop:
    """The same for names of one processor."""
    (found,) = named([layer])
    work = Workload.of(layer_of(found).config, found.input_shape)
    tiling = schedules.decide(work, machine, algorithm=algorithm)
    kernel, level = schedules.apply(lower(work, tiling)).kernel, lowering.effort([tiling.form])
    code = lowering.emit({"k": kernel}, machine, level)
    return hottest(code.text("s"), machine.triple)


def cycles(loop: Loop, cpu: str) -> Cycles | None:
    """Ask llvm-mca; None without it, or where it cannot read the loop."""
    program = shutil.which("llvm-mca")
    if program is None or not cpu:
        return None
    command = [program, f"-mtriple={loop.triple}", f"-mcpu={cpu}", f"-iterations={_ITERATIONS}"]
    if loop.architecture in _FEATURES:
        command.append(f"-mattr={_FEATURES[loop.architecture]}")
    found = []
    for lines, figure in ((loop.lines, "Total Cycles"), (loop.arithmetic(), "Block RThroughput")):
        done = subprocess.run(
            command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False
        )
        match = re.search(rf"{figure}: +([0-9.]+)", done.stdout)
        if done.returncode or match is None:
            return None
        found.append(float(match[1]))
    return Cycles(found[0] / _ITERATIONS, found[1])


def _row(layer: str, target: str, algorithm: str) -> list[str]:
    loop = loop_of(layer, target, algorithm)
    model = MODELS.get(target, "")
    known = cycles(loop, model)
    return [
        target, algorithm, str(loop.products), str(len(loop.lines)),
        f"{loop.integers / max(1, loop.products):.2f}", str(loop.stack),
        model if known else "none",
        f"{known.loop:.1f}" if known else "", f"{known.share:.0%}" if known else "",
    ]  # fmt: skip


def main() -> int:
    """Compile, count, print, and with ``--docs`` write into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.static")
    parser.add_argument("--layer", default="gan_g4")
    parser.add_argument("--targets", default=",".join(MODELS), help="names, with commas")
    parser.add_argument("--docs", nargs="?", type=Path, const=_DOCS)
    args = parser.parse_args()
    if shutil.which("llvm-mca") is None:
        print("llvm-mca is not installed (Debian: llvm): no cycles", file=sys.stderr)
    rows = [
        _row(args.layer, target, algorithm)
        for target in args.targets.split(",")
        for algorithm in ("direct", "toom-cook")
    ]
    header = [
        "target", "algorithm", "products", "instructions", "integer ones a product", "on the stack",
        "model", "cycles", "share of peak",
    ]  # fmt: skip
    text = table(header, rows)
    print(text)
    if args.docs:
        absent = update(args.docs, {"static": text})
        if absent:
            print(f"{args.docs} has no place for: {', '.join(absent)}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
