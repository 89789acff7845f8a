"""Builders and runners for tests of the tuner: times that a formula gives, faults on demand."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

from tuning_records import CONFIG, SHAPE

from tvmconv import targets
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.schedules.space import Space
from tvmconv.tuning.records import Failure
from tvmconv.tuning.runners import Built, Task, Timed

#: What a simulation measures on.
SIMULATED = {"cpu_model": "simulated", "cores": 2}


def task(
    shape: tuple[int | None, ...] = SHAPE,
    config: LayerConfig = CONFIG,
    algorithm: str = "auto",
    machine: str = "x86-64-v3",
) -> Task:
    """A layer for a processor that every machine can think about."""
    work = Workload.of(config, shape)
    return Task(config.name, config, shape, work, targets.resolve(machine)[0], algorithm)


def seconds(space: Space, tiling: Tiling) -> float:
    """A time that the model of the core explains for the most part: the rest is a hash."""
    variant = space.find(tiling)
    assert variant is not None, tiling
    luck = zlib.crc32(repr(tiling).encode()) % 1000 / 1000
    return variant.cycles(tiling) / 3e9 * (1 + 0.2 * luck) * (0.8 if tiling.registers == 1 else 1)


class Simulation:
    """Builder and runner in one: nothing is built, and a formula is what is measured.

    Parameters
    ----------
    tell
        Seconds of a tiling, or the reason why it fails.
    place
        Where the folders of candidates are.
    """

    def __init__(self, tell: Callable[[Tiling], float | Failure], place: Path) -> None:
        self._tell, self._place = tell, place
        self.tilings: dict[Path, Tiling] = {}
        self.tasks: dict[Path, Task] = {}
        #: For several layers, whose tilings may be equal: instead of ``tell``.
        self.tell_of: Callable[[Task, Tiling], float] | None = None
        self.run: list[Tiling] = []
        self.duels: list[list[Tiling]] = []
        self.wrong: set[Tiling] = set()
        self.duel_factor: Callable[[Tiling], float] = lambda _: 1.0
        self.interrupt_at = 10**9

    def build(self, task: Task, tilings: Sequence[Tiling]) -> list[Built]:
        made = []
        for tiling in tilings:
            result = self.tell_of(task, tiling) if self.tell_of else self._tell(tiling)
            if isinstance(result, Failure) and result.reason == "build":
                made.append(Built(tiling, None, result))
                continue
            folder = self._place / f"{len(self.tilings)}"
            folder.mkdir(parents=True)
            self.tilings[folder], self.tasks[folder] = tiling, task
            made.append(Built(tiling, folder))
        return made

    def _told(self, folder: Path) -> float | Failure:
        if self.tell_of is not None:
            return self.tell_of(self.tasks[folder], self.tilings[folder])
        return self._tell(self.tilings[folder])

    def limit_gflops(self) -> float | None:
        return 100.0

    def prepare(self, task: Task, default: Path) -> Failure | None:
        return None

    def time(self, folder: Path, best_s: float | None) -> Timed:
        if len(self.run) >= self.interrupt_at:
            raise KeyboardInterrupt
        self.run.append(self.tilings[folder])
        result = self._told(folder)
        if isinstance(result, Failure):
            return Timed(None, result)
        return Timed((result * 1.01, result))

    def duel(self, folders: Sequence[Path], call_s: float) -> list[list[float]]:
        tilings = [self.tilings[folder] for folder in folders]
        self.duels.append(tilings)
        times = []
        for folder in folders:
            result = self._told(folder)
            assert not isinstance(result, Failure)
            times.append(result * self.duel_factor(self.tilings[folder]))
        return [[s * (1 + 0.001 * (n % 3)) for s in times] for n in range(12)]

    def check(self, folders: Sequence[Path]) -> list[float | None]:
        return [1.0 if self.tilings[folder] in self.wrong else 1e-7 for folder in folders]

    def close(self) -> None:
        pass
