"""Everything that needs a CUDA device, one after another: ``make gpu``, 13 minutes at most.

The device's tests, a short tuning run, times of TF32 and Toom-Cook and of sums that blocks share,
and compute-sanitizer over kernels on tensor cores. Each step has a limit of its own and a log; the
next one runs whatever became of it.

Without a compiler on the machine with the device: ``--build DIR`` on another one, and
``--artifacts DIR`` there times and sanitizes what was built.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cuda
from benchmarks.child import ROOT
from benchmarks.workloads import named
from tvmconv.errors import BuildError
from tvmconv.runtime import cuda_driver

__all__ = ["Step", "main", "run", "steps"]

#: What is timed: a layer that blocks share sums of, and those of `benchmarks.workloads.QUICK`.
_SHARED = ("gan_g2", "float32")
_TIMED = ("tf32", "toom-cook")
#: What compute-sanitizer looks at, small layers: on tensor cores, and shared sums.
_SANITIZED = (("odd", "float16"), ("unet_up1", "bfloat16"), ("unet_up1", "tf32"), _SHARED)
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
_CONFIG = """
import json, pathlib, sys
from benchmarks import tvmconv_runner, workloads
(work,) = workloads.named([sys.argv[1]])
config = tvmconv_runner.layer_of(work).get_config()
pathlib.Path(sys.argv[2]).write_text(json.dumps(config))
"""


@dataclass(frozen=True)
class Step:
    """What is run.

    Attributes
    ----------
    name : str
        Of the step, and of its log.
    commands : tuple of tuple of str
        Run in their order; all of them, whatever becomes of one.
    limit_s : float
        Seconds for all of them.
    missing : callable
        Why it cannot run here; empty if it can.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    limit_s: float
    missing: Callable[[], str] = lambda: ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps; 0 where all ran without a failure, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "gpu", help="of the logs")
    parser.add_argument("--steps", metavar="NAMES", help="only these, with commas")
    parser.add_argument("--build", type=Path, metavar="DIR", help="compile into DIR, run nothing")
    parser.add_argument("--few", action="store_true", help="of --build: no layers to time")
    parser.add_argument("--target", default="cuda:sm_90", help="of --build; default cuda:sm_90")
    parser.add_argument("--artifacts", type=Path, metavar="DIR", help="what was built so")
    asked = parser.parse_args(arguments)
    if asked.build:
        timed = ((work.name, dtype) for work in named(None, quick=True) for dtype in _TIMED)
        for layer, dtype in dict.fromkeys((*_SANITIZED, *(() if asked.few else timed))):
            cuda.build(named([layer]), [dtype], asked.target, asked.build)
        return 0
    folder = asked.folder.resolve()
    found = steps(folder, asked.artifacts and asked.artifacts.resolve())
    names = asked.steps.split(",") if asked.steps else [step.name for step in found]
    if not set(names) <= {step.name for step in found}:
        parser.error(f"--steps: expected some of {', '.join(step.name for step in found)}")
    return run([step for step in found if step.name in names], folder)


def steps(folder: Path, artifacts: Path | None) -> list[Step]:
    """All steps; their limits are 13 minutes together."""
    (work,) = named([_SHARED[0]])
    shape = ",".join(map(str, work.input_shape))
    config, built = folder / f"{work.name}.json", artifacts or folder / "artifacts"
    given = () if artifacts is None else ("--artifacts", str(artifacts))
    build = ("-m", "benchmarks.gpu", "--few", "--build", str(built), "--target", "cuda:native")
    verified = [("-m", "tvmconv", "verify", str(built / "-".join(one))) for one in _SANITIZED]

    def times(dtypes: str, *more: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "benchmarks.cuda", "--dtypes", dtypes, *more, *given)

    def compiler() -> str:
        return "" if artifacts else _no_compiler()

    return [
        Step(
            "tests",
            ((sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests"),),
            240,
            _no_compiler,
        ),
        Step(
            "tune",
            (
                (sys.executable, "-c", _CONFIG, work.name, str(config)),
                (sys.executable, "-m", "tvmconv", "tune", str(config), "--input-shape", shape,
                 "--target", "cuda:native", "--trials", "24", "--logs", str(folder / "logs")),
            ),
            120,
            _no_compiler,
        ),
        Step(
            "times",
            (
                times(_SHARED[1], "--layers", work.name, "--json", str(folder / "shared.json")),
                times(",".join(_TIMED), "--json", str(folder / "times.json")),
            ),
            240,
            lambda: cuda.reason() or compiler(),
        ),
        Step(
            "sanitize",
            (
                *(() if artifacts else ((sys.executable, *build),)),
                *(
                    ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9",
                     sys.executable, *one)
                    for one in verified
                    for tool in _TOOLS
                ),
            ),
            180,
            lambda: _no_sanitizer() or compiler(),
        ),
    ]  # fmt: skip


def run(found: Sequence[Step], folder: Path) -> int:
    """Run steps, each with a log in ``folder`` and a line here; 1 unless all are good."""
    folder.mkdir(parents=True, exist_ok=True)
    good = True
    for step in found:
        reason = cuda_driver.unavailable()
        reason = f"no GPU: {reason}" if reason else step.missing()
        if reason:
            said = f"not run: {reason}"
        else:
            start = time.monotonic()
            said = _run(step, folder / f"{step.name}.log")
            said = f"{said}, {time.monotonic() - start:.0f} s: {folder / step.name}.log"
        good = good and said.startswith("good")
        print(f"{step.name:<10}{said}", flush=True)
    return 0 if good else 1


def _run(step: Step, log: Path) -> str:
    """What became of a step."""
    until, failed = time.monotonic() + step.limit_s, 0
    with log.open("wb") as out:
        for command in step.commands:
            out.write(f"$ {shlex.join(command)}\n".encode())
            out.flush()
            # In a session of its own: what it started ends with it.
            with subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=ROOT,
            ) as process:  # fmt: skip
                try:
                    failed += process.wait(max(0.0, until - time.monotonic())) != 0
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    return f"FAILED at its limit of {step.limit_s:g} s"
    number = len(step.commands)
    return f"FAILED ({failed} of {number} commands)" if failed else "good"


def _no_compiler() -> str:
    from tvmconv.codegen.cuda import nvcc

    if importlib.util.find_spec("tvm") is None:
        return "no compiler: pip install 'tvmconv[test]', or --artifacts"
    try:
        nvcc.find()
    except BuildError as exc:
        return str(exc)
    return ""


def _no_sanitizer() -> str:
    return "" if shutil.which("compute-sanitizer") else "no compute-sanitizer on the path"


if __name__ == "__main__":
    sys.exit(main())
