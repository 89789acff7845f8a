"""The tuning of one layer: batches of candidates, each one record, and the verdict."""

from __future__ import annotations

import contextlib
import datetime
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv import __version__
from tvmconv.errors import TuningError
from tvmconv.tuning import platforms, records, runners, verdict, workloads
from tvmconv.tuning.machine import machine
from tvmconv.tuning.records import Failure, Record

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.schedules.space import Space
    from tvmconv.tuning.runners import Builder, Built, Runner, Task, Timed
    from tvmconv.tuning.search import Search

__all__ = ["Budget", "Progress", "Session"]

#: Candidates that are measured again at the end.
_FINALISTS = 4
#: Of what measures: times are compared where these are the same.
_COMPARABLE = ("cpu_model", "cores", "clock_mhz")
#: Seconds that a batch should take, and its size at most: the more candidates, the less do cores
#: wait for the last one that is built.
_BATCH_S, _MOST_BATCH = 10.0, 16
#: What counts as an improvement for `Budget.early_stop`.
_IMPROVED = 0.99


@dataclass(frozen=True)
class Budget:
    """When a search ends, whichever comes first; None for no limit.

    Attributes
    ----------
    seconds : float or None
        Of the search.
    trials : int or None
        New candidates.
    early_stop : int or None
        Candidates in a row that improve nothing by 1 %.
    """

    seconds: float | None = None
    trials: int | None = None
    early_stop: int | None = None


@dataclass(frozen=True)
class Progress:
    """How far the tuning of a layer is.

    Attributes
    ----------
    layer, step : str
        Its name, and what is being done.
    trials, failed : int
        New candidates that were tried, and how many of them have no time.
    best_s, default_s : float or None
        Seconds of a call, of the fastest candidate and of the default.
    gflop, limit_gflops : float, float or None
        Useful operations of a call in 1e9; what a matrix product reaches.
    left_s, left_trials : float or None, int or None
        What is left of the budget.
    """

    layer: str
    step: str
    trials: int
    failed: int
    best_s: float | None
    default_s: float | None
    gflop: float
    limit_gflops: float | None
    left_s: float | None
    left_trials: int | None


@dataclass
class Session:
    """One layer under tuning.

    Parameters
    ----------
    task, space, search
        What is tuned, over what, and in which order.
    builder, runner
        Who builds and measures.
    log
        The folder that gets the records.
    run
        The id of this run.
    measured_by
        See `machine`; another machine's for a device.
    first
        Candidates to try right after the default: winners from elsewhere.
    progress
        Called after each candidate and step.
    """

    task: Task
    space: Space
    search: Search
    builder: Builder
    runner: Runner
    log: Path
    run: str
    measured_by: dict[str, Any] = field(default_factory=machine)
    limit_gflops: float | None = None
    first: Sequence[Decisions] = ()
    progress: Callable[[Progress], None] = lambda _: None

    def __post_init__(self) -> None:
        described = self.task.described
        self._fingerprint = self.task.machine.fingerprint()
        self._target = platforms.described(self.task.machine)
        self._workload, self.key = described, workloads.key(described)
        self._gflop = self.task.work.plan.flops * max(1, self.task.work.plan.batch) / 1e9
        self._times: dict[Decisions, float] = {}
        self._folders: dict[Decisions, Path] = {}
        self._numbers: dict[Decisions, int] = {}
        self._budget = Budget()
        self._spent_s = self._trial_s = 0.0
        self._started = 0.0
        self.default_s: float | None = None
        self.trials = self.failed = 0
        self._since_better = 0
        self._resume()

    def _resume(self) -> None:
        """Take in what earlier runs on this kind of machine have measured."""
        known: dict[Decisions, float | None] = {}
        for record in records.read(self.log, self._fingerprint, self.key):
            if any(record.machine.get(name) != self.measured_by.get(name) for name in _COMPARABLE):
                continue
            if record.error is not None and record.error.reason == "device":
                continue  # the candidate is not to blame
            with contextlib.suppress(TypeError):
                tiling = self.space.read(record.decisions)
                if self.space.find(tiling) is not None:
                    known[tiling] = record.time_s
                    if record.final is None:
                        self._numbers[tiling] = record.trial
        known.pop(self.space.default, None)  # measured anew: what the others are compared with
        self._times = {tiling: s for tiling, s in known.items() if s is not None}
        self.resumed = len(known)
        self._known = known

    @property
    def best_s(self) -> float | None:
        """Seconds of the fastest candidate."""
        return min(self._times.values(), default=None)

    @property
    def gflop(self) -> float:
        """Useful operations of a call in 1e9."""
        return self._gflop

    def start(self) -> None:
        """Build and measure the default.

        Raises
        ------
        TuningError
            It cannot be built or run.
        """
        self._tell("measuring the default")
        default = self.space.default
        (built,) = self.builder.build(self.task, [default])
        failure = built.failure
        if built.folder is not None:
            failure = self.runner.prepare(self.task, built.folder)
        if built.folder is None or failure is not None:
            detail = failure.detail if failure else "not built"
            raise TuningError(f"{self.task.name}: the default schedule does not run: {detail}")
        record = self._measure(built, 0, *self._timed([built]))
        self._write([record])
        if record.time_s is None:
            assert record.error is not None
            raise TuningError(
                f"{self.task.name}: the default schedule does not run: {record.error.detail}"
            )
        self.default_s = record.time_s
        self.search.tell({**self._known, default: record.time_s})
        self._tell("searching")

    def again(self) -> None:
        """Make the runner ready for this layer after it was busy with another."""
        failure = self.runner.prepare(self.task, self._folders[self.space.default])
        if failure is not None:
            raise TuningError(f"{self.task.name}: the default schedule stopped working: {failure}")

    def explore(self, budget: Budget) -> None:
        """Try candidates until the budget is used up or all were tried."""
        self._budget, self._started = budget, time.monotonic()
        trials, self._since_better = self.trials, 0
        first = [t for t in map(self._brought, self.first) if t and t not in self._known]
        count = 4
        while True:
            left = None if budget.trials is None else budget.trials - (self.trials - trials)
            if left is not None:
                count = min(count, left)
            stale = budget.early_stop is not None and self._since_better >= budget.early_stop
            if count < 1 or stale or self._over():
                return
            batch, first = (first, []) if first else (self.search.propose(count), [])
            if not batch:
                return
            begin = time.monotonic()
            self._try(batch)
            each = (time.monotonic() - begin) / len(batch)
            span = min(_BATCH_S, self._left_s())
            count = max(2, min(_MOST_BATCH, int(span / max(each, 1e-3))))

    def _brought(self, tiling: Decisions) -> Decisions | None:
        """A tiling of this or another shape as it is legal here."""
        found = tiling if self.space.find(tiling) else self.space.nearest(tiling)
        return None if found == self.space.default else found

    def _left_s(self) -> float:
        """Seconds of the budget that are left; below 0 beyond it."""
        seconds = math.inf if self._budget.seconds is None else self._budget.seconds
        return seconds - (time.monotonic() - self._started)

    def _over(self, by: float = 0.0) -> bool:
        return self._left_s() <= -by

    def _try(self, tilings: Sequence[Decisions]) -> None:
        made: list[Record] = []
        results: dict[Decisions, float | None] = {}
        try:
            for group in runners.groups(self.runner, self._built(tilings)):
                for built, timed in zip(group, self._timed(group), strict=True):
                    self.trials += 1
                    best = self.best_s
                    record = self._measure(built, self.trials, timed)
                    made.append(record)
                    results[built.tiling] = record.time_s
                    better = record.time_s is not None and record.time_s < _IMPROVED * (best or 1e9)
                    self._since_better = 0 if better else self._since_better + 1
                    self._tell("searching")
                if self._over(_BATCH_S):  # what was built is run, unless it hangs
                    break
        finally:  # also when somebody presses Ctrl-C: what was measured is kept
            self._write(made)
        self.search.tell(results)
        self._forget()

    def _built(self, tilings: Sequence[Decisions]) -> list[Built]:
        return self.builder.build(self.task, list(dict.fromkeys(tilings)))

    def _timed(self, group: Sequence[Built]) -> list[Timed]:
        return runners.timed(self.runner, group, self.best_s)

    def _measure(self, built: Built, trial: int, timed: Timed) -> Record:
        seconds, failure = timed.seconds, timed.failure
        self._numbers[built.tiling] = trial
        if built.folder is not None:
            self._folders[built.tiling] = built.folder
        if seconds:
            self._times[built.tiling] = min(seconds)
        else:
            self.failed += 1
        return self._record(built.tiling, trial, seconds, failure)

    def _record(
        self,
        tiling: Decisions,
        trial: int,
        seconds: tuple[float, ...] | None,
        failure: Failure | None,
        **more: Any,
    ) -> Record:
        decisions = tiling.to_json()
        return Record(
            id=records.identity(self.key, self._fingerprint, decisions),
            run=self.run,
            trial=trial,
            when=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            target=self._target,
            machine=self.measured_by,
            workload=self._workload,
            workload_key=self.key,
            layer=self.task.name,
            decisions=decisions,
            trace=more.get("trace"),
            seconds=seconds,
            error=failure,
            gflop=round(self._gflop, 9),
            limit_gflops=self.limit_gflops,
            final=more.get("final"),
            tvm=records.tvm_version(),
            tvmconv=__version__,
            algorithm=self.task.algorithm,
        )

    def finish(self) -> Record:
        """Let the best few meet the default once more; store the winner.

        Raises
        ------
        TuningError
            The runner failed. What was measured before is stored.
        """
        from tvmconv.tuning import traces

        default = self.space.default
        self._tell("building the best")
        assert self.default_s is not None
        rivals = sorted(self._times, key=lambda tiling: self._times[tiling])
        rivals = [t for t in rivals if t != default and self._times[t] < 1.05 * self.default_s]
        rivals = rivals[:_FINALISTS]
        missing = [tiling for tiling in rivals if not self._has(tiling)]
        for built in self.builder.build(self.task, missing) if missing else ():
            if built.folder is not None:
                timed = self.runner.time(built.folder, None)  # an old record may be wrong today
                if timed.seconds:
                    self._folders[built.tiling] = built.folder
        entrants = [verdict.Finalist(t, self._folders[t]) for t in rivals if self._has(t)]
        first = verdict.Finalist(default, self._folders[default])
        tolerance = self.task.tolerance
        found = verdict.decide(self.runner, first, entrants, self.default_s, tolerance, self._tell)
        numbers = self._numbers
        made = [
            self._record(tiling, numbers[tiling], None, Failure("wrong", f"{error}, whole layer"))
            for tiling, error in found.wrong.items()
        ]
        trace = traces.trace_json(traces.schedule(self.space.find(found.winner), found.winner))
        winner = self._record(
            found.winner, numbers[found.winner], (found.final.median_s,), None,
            final=found.final, trace=trace,
        )  # fmt: skip
        self._write([*made, winner])
        self._tell("done")
        return winner

    def _has(self, tiling: Decisions) -> bool:
        return tiling in self._folders and self._folders[tiling].exists()

    def _forget(self) -> None:
        """Remove the artifacts of all but the best few: hundreds would fill a disk."""
        rank = sorted(self._folders, key=lambda tiling: self._times.get(tiling, 1e9))
        for tiling in rank[2 * _FINALISTS :]:
            if tiling != self.space.default:
                shutil.rmtree(self._folders.pop(tiling), ignore_errors=True)

    def _write(self, made: Sequence[Record]) -> None:
        with _undisturbed():
            records.append(self.log, made)

    def _tell(self, step: str) -> None:
        budget = self._budget
        self.progress(
            Progress(
                self.task.name,
                step,
                self.trials,
                self.failed,
                self.best_s,
                self.default_s,
                self._gflop,
                self.limit_gflops,
                None if budget.seconds is None else max(0.0, self._left_s()),
                None if budget.trials is None else max(0, budget.trials - self.trials),
            )
        )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ctrl-C waits until a record is written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
