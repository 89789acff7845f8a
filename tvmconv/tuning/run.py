"""`tune`: search faster schedules for layers, on the processor itself."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.compiler import ALGORITHMS, PRECISIONS
from tvmconv.errors import ConfigError, TargetError, TuningError
from tvmconv.tuning import lookup, models, platforms, workloads
from tvmconv.tuning.session import Budget, Progress, Session

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Decisions
    from tvmconv.config import LayerConfig
    from tvmconv.runtime.layer import Conv3DTranspose
    from tvmconv.schedules.space import Space
    from tvmconv.tuning.platforms import Machine
    from tvmconv.tuning.records import Record
    from tvmconv.tuning.runners import Builder, Runner, Task

__all__ = ["Result", "processor", "task_of", "tune", "tune_tasks"]

#: Share of the budget that all layers get alike; the rest goes by expected gain.
_ALIKE = 0.5
_MOST_JOBS = 64

Shape = Sequence["int | None"]


@dataclass(frozen=True)
class Result:
    """What tuning found for one layer on one input shape.

    Attributes
    ----------
    layer, input_shape : str, tuple
        What was tuned.
    record : Record
        The winner, which the compiler takes from now on; the default where nothing beat it.
    trials, failed, resumed : int
        Candidates tried now, how many of them have no time, and how many were known before.
    seconds : float
        That the search and the second measurement took.
    """

    layer: str
    input_shape: tuple[int | None, ...]
    record: Record
    trials: int
    failed: int
    resumed: int
    seconds: float

    @property
    def gain(self) -> float:
        """Of the winner over the default: 0.1 is a tenth more calls a second."""
        return self.record.final.gain if self.record.final else 0.0


def tune(
    layer: Conv3DTranspose,
    input_shape: Shape,
    *,
    target: str = "native",
    algorithm: str = "auto",
    precision: str = "full",
    seconds: float | None = None,
    trials: int | None = None,
    early_stop: int | None = None,
    jobs: int | None = None,
    seed: int = 0,
    logs: str | Path | None = None,
    cost_model: str = "xgb",
    callback: Callable[[Progress], None] | None = None,
) -> Result:
    """Search a faster schedule for a layer on this machine; `tvmconv.compile` uses what was found.

    Every candidate becomes a record in the log at once, so that a run that is interrupted goes on
    where it was when it is started again with the same log.

    Parameters
    ----------
    layer : Conv3DTranspose
        Its weights do not matter.
    input_shape : sequence of 5 int or None
        In the layer's data format. An open batch is measured as 1.
    target : str
        A processor that this machine can stand for; ``"native"`` is this one. Or
        ``"cuda:native"``, ``"cuda:sm_90"``: the CUDA device here.
    algorithm : str
        ``"direct"``, ``"pairs"`` and ``"toom-cook"`` search those forms only.
    precision : str
        ``"tf32"``: what compiling with ``precision="tf32"`` takes, on CUDA devices.
    seconds, trials, early_stop : float, int, int, optional
        When the search ends, whichever comes first; ten minutes when none is given. Starting and
        the second measurement come on top, some seconds for each layer.
        ``early_stop`` is a number of candidates in a row that improve nothing by 1 %.
    jobs : int, optional
        Candidates that are built at a time; None: as many as cores.
    seed : int
        Of the candidates and the inputs.
    logs : path, optional
        The folder of the records; None for the user's own.
    cost_model : str
        ``"xgb"``, or ``"random"`` for a search without one.
    callback : callable, optional
        Called with a `tvmconv.tuning.session.Progress` after each candidate.

    Raises
    ------
    ConfigError
        An argument is wrong.
    TargetError
        This machine cannot run code for the target.
    TuningError
        The log cannot be written, or the default schedule itself does not run.
    """
    task = task_of(
        layer.name, layer.config, tuple(input_shape), processor(target), algorithm, precision
    )
    (result,) = tune_tasks(
        [task],
        Budget(seconds, trials, early_stop),
        jobs=jobs,
        seed=seed,
        log=lookup.writable_folder(logs),
        cost_model=cost_model,
        callback=callback,
    )
    return result


def processor(target: str, *, elsewhere: bool = False) -> Machine:
    """The processor or CUDA device to tune for.

    Raises
    ------
    TargetError
        It is several, or (unless it is ``elsewhere``) this machine cannot run its code.
    """
    from tvmconv import cuda_machine, targets

    if isinstance(target, str) and "cuda" in target:
        if elsewhere:
            return cuda_machine.elsewhere(target, targets.native().triple)
        return cuda_machine.here(target)
    found = targets.resolve_buildable(target)
    if len(found) != 1:
        raise TargetError("tuning is for one processor at a time; name one")
    (machine,) = found
    lacking = () if elsewhere else targets.missing_here(machine)
    if lacking:
        raise TargetError(
            f"this machine is not {target!r} (it lacks {lacking[0]}), so candidates cannot run "
            "here; tune on such a device, with --device"
        )
    # What is measured here has as many cores as this machine gives.
    return machine if elsewhere else dataclasses.replace(machine, cores=targets.usable_cores())


def task_of(
    name: str,
    config: LayerConfig,
    shape: tuple[int | None, ...],
    machine: Machine,
    algorithm: str = "auto",
    precision: str = "full",
) -> Task:
    """A layer to tune; its precision is ``"tf32"`` where the rule for the device rounds to it.

    Raises
    ------
    ConfigError, TargetError
        An argument is wrong, or the machine has no such precision.
    """
    from tvmconv.compute.workload import Workload
    from tvmconv.tuning.runners import Task

    for option, value, known in (
        ("algorithm", algorithm, ALGORITHMS), ("precision", precision, PRECISIONS)
    ):  # fmt: skip
        if value not in known:
            raise ConfigError(f"Expected {option} to be one of {known}. Received: {value!r}")
    work = Workload.of(config, shape)
    found = platforms.precision(work, machine, algorithm, precision)
    return Task(name, config, shape, work, machine, algorithm, found)


def tune_tasks(
    tasks: Sequence[Task],
    budget: Budget,
    *,
    log: Path,
    jobs: int | None = None,
    seed: int = 0,
    cost_model: str = "xgb",
    builder: Builder | None = None,
    runner: Runner | None = None,
    measured_by: dict[str, Any] | None = None,
    callback: Callable[[Progress], None] | None = None,
    finished: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Tune several layers on one budget; each gets a share by the gain that it promises.

    Parameters
    ----------
    tasks
        Of one processor.
    budget
        For all of them together.
    builder, runner, measured_by
        Others than this machine's own: a device, or a simulation.
    finished
        Called with each result as soon as it is stored.

    Raises
    ------
    ConfigError
        An argument is wrong, or the cost model is not installed.
    TuningError
        See `tune`.
    """
    from tvmconv import targets
    from tvmconv.tuning.runners import LocalBuilder

    budget = _checked(budget, jobs)
    jobs = jobs or min(targets.usable_cores(), 8)
    models.check(cost_model)
    _check_log(log)
    with contextlib.ExitStack() as stack:
        if builder is None:
            platforms.check_tools(tasks[0].machine)
            builder = LocalBuilder(jobs)
            stack.callback(builder.close)
        if runner is None:
            runner = platforms.runner(tasks[0].machine, seed)
            stack.callback(runner.close)
        limit = runner.limit_gflops()
        run = uuid.uuid4().hex[:8]
        sessions = []
        for task in tasks:
            session = _session(
                task, builder, runner, log, run, seed, cost_model, measured_by, limit, callback
            )
            session.start()
            sessions.append(session)
        results = []
        spent_s, spent_trials = 0.0, 0
        for at, session in enumerate(sessions):
            left = _left(budget, spent_s, spent_trials)
            part = _share([_promise(one) for one in sessions[at:]])
            start = time.monotonic()
            if len(sessions) > 1:
                session.again()
            session.explore(_portion(left, part))
            spent_s += time.monotonic() - start
            spent_trials += session.trials
            record = session.finish()
            took = time.monotonic() - start
            task = session.task
            result = Result(
                task.name, task.shape, record, session.trials, session.failed, session.resumed, took
            )
            results.append(result)
            if finished is not None:
                finished(result)
        return results


def _checked(budget: Budget, jobs: int | None) -> Budget:
    for name, value in dataclasses.asdict(budget).items():
        if value is not None and not value > 0:
            raise ConfigError(
                f"Expected {name} above 0: there is nothing to try. Received: {value}"
            )
    if jobs is not None and not 1 <= jobs <= _MOST_JOBS:
        raise ConfigError(f"Expected jobs from 1 to {_MOST_JOBS}. Received: {jobs}")
    if budget == Budget():
        return Budget(seconds=600.0)
    return budget


def _check_log(log: Path) -> None:
    """Refuse a log that cannot be written before anything is measured for it."""
    probe = log / f".{uuid.uuid4().hex}"
    try:
        log.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as exc:
        with contextlib.suppress(OSError):
            probe.unlink()
        raise TuningError(
            f"the log {log} cannot be written: {exc.strerror or exc}; give another folder with "
            "--logs"
        ) from exc


def _session(
    task: Task,
    builder: Builder,
    runner: Runner,
    log: Path,
    run: str,
    seed: int,
    cost_model: str,
    measured_by: dict[str, Any] | None,
    limit: float | None,
    callback: Callable[[Progress], None] | None,
) -> Session:
    from tvmconv.tuning.search import Search

    space = platforms.space(task.work, task.machine, task.algorithm, task.precision)
    search = Search(space, models.make(cost_model, space), seed)
    return Session(
        task,
        space,
        search,
        builder,
        runner,
        log,
        run,
        measured_by or platforms.measured_by(task.machine),
        platforms.limit_gflops(task.machine, task.work, limit),
        _winners_elsewhere(task, space, log),
        callback or (lambda _: None),
    )


def _winners_elsewhere(task: Task, space: Space, log: Path) -> list[Decisions]:
    """What won on this shape or a near one before, here or in another log."""
    found = []
    described = task.described
    fingerprint, cores = task.machine.fingerprint(), task.machine.cores
    for folder in dict.fromkeys([log, *lookup.folders()]):
        exact = lookup.best([folder], fingerprint, workloads.key(described), task.algorithm, cores)
        near = lookup.nearest([folder], fingerprint, described, task.algorithm, cores)
        found += [record for record in (exact, near) if record is not None]
    tilings = []
    for record in found:
        with contextlib.suppress(TypeError):
            tilings.append(space.read(record.decisions))
    return list(dict.fromkeys(tilings))


def _promise(session: Session) -> float:
    """Seconds a call that tuning might save: what the default is away from the limit."""
    if session.default_s is None:
        return 1e-9
    share = 0.5
    if session.limit_gflops:
        share = min(0.95, session.gflop / session.default_s / session.limit_gflops)
    return session.default_s * (1 - share)


def _share(promises: Sequence[float]) -> float:
    """The part of what is left that the first of several layers gets."""
    return _ALIKE / len(promises) + (1 - _ALIKE) * promises[0] / sum(promises)


def _left(budget: Budget, spent_s: float, spent_trials: int) -> Budget:
    """What the layers that are not done may still use for searching."""
    return Budget(
        None if budget.seconds is None else max(0.0, budget.seconds - spent_s),
        None if budget.trials is None else max(0, budget.trials - spent_trials),
        budget.early_stop,
    )


def _portion(budget: Budget, part: float) -> Budget:
    return Budget(
        None if budget.seconds is None else budget.seconds * part,
        None if budget.trials is None else max(1, round(budget.trials * part)),
        budget.early_stop,
    )
