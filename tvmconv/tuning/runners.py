"""Who builds candidates and who runs them: protocols, and child processes of this machine.

A runner may be a device elsewhere. Whatever it is, it gets folders that hold an artifact and its
packed weights (`tvmconv.tuning.building`), and answers with times or with a `Failure`; it raises
nothing for a candidate's sake.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from tvmconv.tuning import platforms, workloads
from tvmconv.tuning.processes import Child, ChildError
from tvmconv.tuning.records import Failure
from tvmconv.tuning.running import TOLERANCE

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.compute.workload import Workload
    from tvmconv.config import LayerConfig
    from tvmconv.tuning.platforms import Machine

__all__ = [
    "Builder",
    "Built",
    "LocalBuilder",
    "LocalRunner",
    "Runner",
    "Several",
    "Task",
    "Timed",
    "groups",
    "timed",
]

_PREPARE_S, _RUN_S, _CHECK_S = 300.0, 20.0, 1200.0
#: For each kind of candidate; nvcc takes its time.
_BUILD_S = {"build": 90.0, "build-cuda": 600.0}
_BUILD_BYTES, _RUN_BYTES = 4 << 30, 1 << 30
#: A call may take so many times as long as the default's before it counts as hanging.
_HANGING = 50.0
#: Libraries that one runner process loads before a fresh one takes its place.
_LIBRARIES = 64


@dataclass(frozen=True)
class Task:
    """One layer on one input shape, for one processor or CUDA device.

    ``precision`` is ``"tf32"`` where candidates round to it; otherwise ``"full"``.
    """

    name: str
    config: LayerConfig
    shape: tuple[int | None, ...]
    work: Workload
    machine: Machine
    algorithm: str = "auto"
    precision: str = "full"

    @property
    def described(self) -> dict[str, Any]:
        """What is computed, as in a record."""
        return workloads.describe(self.work, self.precision)

    @property
    def tolerance(self) -> float:
        """Largest difference of a candidate: see `tvmconv.tuning.running.TOLERANCE`."""
        return TOLERANCE["tf32" if self.precision == "tf32" else self.work.input_dtype]


@dataclass(frozen=True)
class Built:
    """A candidate that was built, or why it was not."""

    tiling: Decisions
    folder: Path | None
    failure: Failure | None = None


@dataclass(frozen=True)
class Timed:
    """Seconds of calls of a candidate, or why there are none."""

    seconds: tuple[float, ...] | None
    failure: Failure | None = None


class Builder(Protocol):
    """Makes artifacts of candidates."""

    def build(self, task: Task, tilings: Sequence[Decisions]) -> list[Built]:
        """One answer for each tiling, in their order."""

    def close(self) -> None:
        """Give back what it holds; what is being built is given up."""


class Runner(Protocol):
    """Runs artifacts of candidates on the processor that is tuned for."""

    def limit_gflops(self) -> float | None:
        """1e9 operations a second of a matrix product on all cores; None where it is not known."""

    def prepare(self, task: Task, default: Path) -> Failure | None:
        """Take the default's artifact as what the others are compared with."""

    def time(self, folder: Path, best_s: float | None) -> Timed:
        """Compare a candidate with the default, and time it; shortly where it is no rival."""

    def duel(self, folders: Sequence[Path], call_s: float) -> list[list[float]]:
        """Seconds of a call of each candidate in turns on fresh inputs; a row for each round.

        Raises
        ------
        ChildError
            The runner failed.
        """

    def check(self, folders: Sequence[Path]) -> list[float | None]:
        """Largest error against the reference on the whole layer; None where it is not finite.

        Raises
        ------
        ChildError
            The runner failed.
        """

    def close(self) -> None:
        """Give back what it holds."""


@runtime_checkable
class Several(Protocol):
    """A runner of several devices, which times so many candidates at once."""

    @property
    def width(self) -> int:
        """Candidates that keep all devices busy."""

    def times(self, folders: Sequence[Path], best_s: float | None) -> list[Timed]:
        """`Runner.time` of each."""


def groups(runner: Runner, built: Sequence[Built]) -> list[Sequence[Built]]:
    """What is handed to a runner at once: one candidate, or as many as keep it busy."""
    width = runner.width if isinstance(runner, Several) else 1
    return [built[at : at + width] for at in range(0, len(built), width)]


def timed(runner: Runner, group: Sequence[Built], best_s: float | None) -> list[Timed]:
    """Times of a group, and the failures of those that were not built."""
    folders = [built.folder for built in group if built.folder is not None]
    if isinstance(runner, Several):
        times = runner.times(folders, best_s)
    else:
        times = [runner.time(folder, best_s) for folder in folders]
    found = iter(times)
    return [Timed(None, one.failure) if one.folder is None else next(found) for one in group]


class LocalBuilder:
    """Builds in child processes, ``jobs`` at a time."""

    def __init__(self, jobs: int) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="tvmconv-tune-")
        self._children = [Child("build", _BUILD_BYTES) for _ in range(jobs)]
        self._idle = list(self._children)
        self._pool = ThreadPoolExecutor(jobs)
        self._count = 0
        self._closed = False

    def build(self, task: Task, tilings: Sequence[Decisions]) -> list[Built]:
        """See `Builder`."""
        begun = {}
        # The longest first, so that no core waits for it in the end.
        for at in sorted(range(len(tilings)), key=lambda at: tilings[at].form != "toom-cook"):
            self._count += 1
            folder = Path(self._place.name) / str(self._count)
            begun[at] = self._pool.submit(self._build, task, tilings[at], folder)
        return [begun[at].result() for at in range(len(tilings))]

    def _build(self, task: Task, tiling: Decisions, folder: Path) -> Built:
        shared = Path(self._place.name) / f"shared-{abs(hash((task.name, task.shape)))}"
        shared.mkdir(exist_ok=True)
        request = {
            **platforms.build_request(task.machine),
            "config": task.config.get_config(),
            "shape": task.shape,
            "tiling": tiling.to_json(),
            "folder": str(folder),
            "shared": str(shared),
        }
        child = self._idle.pop()
        try:
            if self._closed:
                raise ChildError("build", "given up")
            child.ask(request, _BUILD_S[request["do"]])
        except ChildError as exc:
            reason = "build" if exc.failure.reason == "error" else exc.failure.reason
            return Built(tiling, None, Failure(reason, f"build: {exc.failure.detail}"))
        finally:
            self._idle.append(child)
        return Built(tiling, folder)

    def close(self) -> None:
        """See `Builder`."""
        self._closed = True
        for child in self._children:
            child.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._place.cleanup()


class LocalRunner:
    """Runs candidates in a child process of this machine, one at a time.

    Parameters
    ----------
    seed
        Of the inputs.
    seconds
        How long a candidate is timed.
    run_s
        How long it may take, besides what the default takes.
    """

    #: What the child process is for, and memory that it may take beside the layer's arrays.
    kind, memory = "run", _RUN_BYTES

    def __init__(self, seed: int = 0, seconds: float = 0.12, run_s: float = _RUN_S) -> None:
        self._seed, self._seconds, self._run_s = seed, seconds, run_s
        self._place = tempfile.TemporaryDirectory(prefix="tvmconv-run-")
        self._child = Child(self.kind, self.memory)
        self._request: dict[str, Any] = {}
        self._more: dict[str, Any] = {}
        self._default_s: float | None = None
        self._tolerance = 0.0
        self._runs = 0

    def limit_gflops(self) -> float | None:
        """See `Runner`."""
        from tvmconv import targets

        try:
            found = self._child.ask({"do": "limit"}, _PREPARE_S)["gflops"]
        except ChildError:
            return None
        return None if found is None else float(found) * targets.usable_cores()

    def prepare(self, task: Task, default: Path) -> Failure | None:
        """See `Runner`."""
        plan = task.work.plan
        elements = math.prod(plan.input_shape[1:]) + 3 * math.prod(task.work.output_shape[1:])
        elements = 8 * elements * max(1, plan.batch) + 64 * math.prod(plan.kernel_shape)
        self._child.close()
        self._child.memory = self.memory + 2 * elements
        expected = Path(self._place.name) / f"expected-{default.name}.npy"
        self._request = {
            "do": "prepare",
            "config": task.config.get_config(),
            "shape": task.shape,
            "seed": self._seed,
            "expected": str(expected),
            "default": str(default),
            **self._more,
        }
        self._tolerance = task.tolerance
        self._default_s = None
        try:
            self._ready()
        except ChildError as exc:
            return _failure(exc)
        return None

    def time(self, folder: Path, best_s: float | None) -> Timed:
        """See `Runner`."""
        self._runs += 1
        if self._runs % _LIBRARIES == 0:
            self._child.close()
        request = {"do": "time", "folder": str(folder), "seconds": self._seconds, "best": best_s}
        allowed = self._run_s + _HANGING * (self._default_s or 1.0)
        try:
            self._ready()
            answer = self._ask(request, allowed)
        except ChildError as exc:
            return Timed(None, _failure(exc))
        difference = answer["difference"]
        if difference is None or not difference <= self._tolerance:
            shown = "not finite" if difference is None else f"off by {difference:.1e}"
            return Timed(None, Failure("wrong", f"{shown}, {self._tolerance:.0e} is allowed"))
        seconds = tuple(answer["seconds"])
        if self._default_s is None:
            self._default_s = min(seconds)
        return Timed(seconds)

    def duel(self, folders: Sequence[Path], call_s: float) -> list[list[float]]:
        """See `Runner`."""
        self._ready()
        count = len(folders)
        request = {
            "do": "duel",
            "folders": [str(folder) for folder in folders],
            "seed": self._seed + 1,
            "call": call_s,
            "slice": 0.03,
            "seconds": min(20.0, max(3.0, 12 * count * call_s)),
            "least": 7,
            "most": 60,
        }
        answer = self._ask(request, _CHECK_S)
        return [[float(s) for s in row] for row in answer["rounds"]]

    def check(self, folders: Sequence[Path]) -> list[float | None]:
        """See `Runner`."""
        self._ready()
        # The reference computes in float64 and keeps several arrays.
        before, self._child.memory = self._child.memory, 3 * self._child.memory
        request = {
            "do": "check", "folders": [str(folder) for folder in folders], "seed": self._seed + 2
        }  # fmt: skip
        try:
            return list(self._ask(request, _CHECK_S)["errors"])
        finally:
            self._child.memory = before

    def close(self) -> None:
        """See `Runner`."""
        self._child.close()
        self._place.cleanup()

    def _ready(self) -> None:
        """A process that knows the layer: a new one after a death."""
        if not self._child.running:
            self._ask(self._request, _PREPARE_S)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        return self._child.ask(request, seconds)


def _failure(exc: ChildError) -> Failure:
    """An error that the candidate itself reported is one of the run."""
    reason = "run" if exc.failure.reason == "error" else exc.failure.reason
    return Failure(reason, exc.failure.detail)
