"""Searches that are answered from a table of times: many seeds for the price of one measurement.

Every candidate of the direct forms of a layer, with whole registers, is built and timed once, in an
order that is drawn. A search then meets the same times whatever it tries, so that two ways to
search differ by what they try and by nothing else.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import Workload

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.schedules.space import Space
    from tvmconv.tuning.records import Failure, Record
    from tvmconv.tuning.runners import Builder, Built, Runner, Task, Timed

__all__ = ["Recorded", "measure", "replay", "table"]

#: Seconds of calls of a candidate: there are many, and none is confirmed in the end.
_CALLS_S = 0.05


def measure(
    work: Workload, log: Path, *, seed: int = 0, until: float = math.inf
) -> tuple[int, int]:
    """Time every candidate that ``log`` lacks: how many it has now, and how many there are.

    Parameters
    ----------
    until
        When to stop, by `time.monotonic`; the same call goes on.

    Raises
    ------
    TuningError
        The default does not run, or the log cannot be written.
    """
    from tvmconv import targets
    from tvmconv.tuning.runners import LocalBuilder, LocalRunner
    from tvmconv.tuning.session import Budget

    task, space = _direct(work)
    every = [*space.all()]
    if len(table(work, log)) < len(every) and time.monotonic() < until:
        with _closing(LocalBuilder(targets.usable_cores()), LocalRunner(seconds=_CALLS_S)) as (
            builder,
            runner,
        ):
            session = _session(task, space, _Every(every, seed), builder, runner, log)
            session.start()
            left = until - time.monotonic()
            if left > 0:
                session.explore(Budget(None if left == math.inf else left))
    return len(table(work, log)), len(every)


def table(work: Workload, log: Path) -> dict[Tiling, Record]:
    """What ``log`` holds of the direct forms of a layer."""
    from tvmconv.compute.tiling import Tiling
    from tvmconv.tuning import records, workloads

    task, _ = _direct(work)
    key = workloads.key(workloads.describe(task.work))
    found: dict[Tiling, Record] = {}
    for record in records.read(log, task.machine.fingerprint(), key):
        found.setdefault(Tiling.from_json(record.decisions), record)
    return found


def replay(
    work: Workload, found: Mapping[Tiling, Record], *, model: str, seed: int, trials: int
) -> list[float | None]:
    """The times that a search meets, in its order, the default's first."""
    from tvmconv.tuning import models, records
    from tvmconv.tuning.search import Search
    from tvmconv.tuning.session import Budget

    task, space = _direct(work)
    answers = Recorded(found)
    with tempfile.TemporaryDirectory(prefix="tvmconv-bench-") as place:
        order = Search(space, models.make(model, space), seed)
        session = _session(task, space, order, answers, answers, Path(place))
        session.start()
        session.explore(Budget(trials=trials))
        made = records.read(Path(place), task.machine.fingerprint(), session.key)
    return [one.time_s for one in made]


class Recorded:
    """Builder and runner in one: nothing is built, and what was measured before is the answer."""

    def __init__(self, found: Mapping[Tiling, Record]) -> None:
        self._found = found
        self._folders: dict[Path, Tiling] = {}

    def build(self, task: Task, tilings: Sequence[Tiling]) -> list[Built]:
        """A name for each candidate."""
        from tvmconv.tuning.runners import Built

        del task
        made = []
        for tiling in tilings:
            folder = Path("recorded") / str(len(self._folders))
            self._folders[folder] = tiling
            made.append(Built(tiling, folder))
        return made

    def limit_gflops(self) -> float | None:
        """It is in the records."""
        return None

    def prepare(self, task: Task, default: Path) -> Failure | None:
        """Nothing to do."""
        del task, default
        return None

    def time(self, folder: Path, best_s: float | None) -> Timed:
        """What was measured."""
        from tvmconv.tuning.runners import Timed

        del best_s
        record = self._found[self._folders[folder]]
        return Timed(record.seconds, record.error)

    def duel(self, folders: Sequence[Path], call_s: float) -> list[list[float]]:
        """Never asked for: a recorded table has no second measurement."""
        raise NotImplementedError

    def check(self, folders: Sequence[Path]) -> list[float | None]:
        """Never asked for: a recorded table has no second measurement."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing to do."""


class _Every:
    """All candidates in an order that is drawn, in the place of a search."""

    def __init__(self, every: Sequence[Tiling], seed: int) -> None:
        self._left = dict.fromkeys(random.Random(seed).sample(every, len(every)))

    def tell(self, results: Mapping[Tiling, float | None]) -> None:
        for tiling in results:
            self._left.pop(tiling, None)

    def propose(self, count: int) -> list[Tiling]:
        return list(self._left)[:count]


def _direct(work: Workload) -> tuple[Task, Space]:
    from tvmconv.schedules.space import Space
    from tvmconv.tuning import workloads
    from tvmconv.tuning.run import processor
    from tvmconv.tuning.runners import Task

    config = layer_of(work).config
    of_layer = workloads.of_layer(config, work.input_shape)
    task = Task(work.name, config, work.input_shape, of_layer, processor("native"), "direct")
    space = Space.of(task.work, task.machine, task.algorithm)
    # Half as many lanes as a register has are hardly ever of use, and half of the space.
    whole = [one for one in space.variants if one.base.vector == space.default.vector]
    return task, Space(space.default, tuple(whole))


def _session(
    task: Task, space: Space, search: Any, builder: Builder, runner: Runner, log: Path
) -> Any:
    from tvmconv.tuning.session import Session

    return Session(task, space, search, builder, runner, log, "table")


@contextmanager
def _closing(builder: Builder, runner: Runner) -> Iterator[tuple[Builder, Runner]]:
    try:
        yield builder, runner
    finally:
        builder.close()
        runner.close()
