"""Records that ship beside today's default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks import shipped
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import named
from tests.tuning_records import winner
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.schedules.space import Space
from tvmconv.tuning import lookup, records, runners, workloads
from tvmconv.tuning.run import processor
from tvmconv.tuning.runners import Built, Task, Timed


class Bench:
    """A builder and a runner of candidates that are numbers: the default takes a millisecond."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.closed = 0

    def build(self, task: Task, tilings: Sequence[Tiling]) -> list[Built]:
        del task
        return [Built(tiling, Path(str(at))) for at, tiling in enumerate(tilings)]

    def prepare(self, task: Task, default: Path) -> None:
        assert (task.name, default) == ("odd", Path("0"))

    def time(self, folder: Path, best_s: float | None) -> Timed:
        assert (folder, best_s) == (Path("0"), None)
        return Timed((1e-3,))

    def check(self, folders: Sequence[Path]) -> list[float]:
        return [1e-7] * len(folders)

    def duel(self, folders: Sequence[Path], call_s: float) -> list[list[float]]:
        assert (list(folders), call_s) == ([Path("0"), Path("1")], 1e-3)
        return [[1e-3, self._seconds * (1 + at % 3 / 1000)] for at in range(20)]

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log with one winner of `odd`, which is not the default, and a default that won."""
    (layer,) = named(["odd"])
    machine = processor("native")
    work = Workload.of(layer_of(layer).config, layer.input_shape)
    space = Space.of(work, machine)
    tiling = next(one for one in space.all() if one != space.default)
    described = workloads.describe(work)
    key, fingerprint = workloads.key(described), machine.fingerprint()
    more = {"layer": "odd", "workload": described, "workload_key": key}
    made = winner(fingerprint=fingerprint, tiling=tiling, **more)
    records.append(tmp_path, [made])
    records.append(tmp_path, [winner(0.0, fingerprint=fingerprint)])
    assert len(list(tmp_path.glob("*/*.json"))) == 2
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, log: Path, seconds: float, *more: str) -> int:
    bench = Bench(seconds)
    monkeypatch.setattr(runners, "LocalBuilder", lambda jobs: bench)
    monkeypatch.setattr(runners, "LocalRunner", lambda: bench)
    code = shipped.main(["--logs", str(log), *more])
    assert bench.closed == 2
    return code


def test_a_record_that_wins_again_gets_the_new_verdict(
    monkeypatch: pytest.MonkeyPatch, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ((_, before),) = [one for folder in log.iterdir() for one in shipped.winners(folder)]
    assert before.final is not None and before.final.default is None
    assert run(monkeypatch, log, 0.8e-3) == 0
    assert capsys.readouterr().out == "odd: gain +24.9% now, +10.0% when it was made\n"
    ((_, same),) = [one for folder in log.iterdir() for one in shipped.winners(folder)]
    assert same == before
    assert run(monkeypatch, log, 0.8e-3, "--update") == 0
    ((_, renewed),) = [one for folder in log.iterdir() for one in shipped.winners(folder)]
    assert (renewed.id, renewed.seconds) == (before.id, before.seconds)
    assert renewed.final is not None and 0.24 < renewed.final.gain < 0.25
    space = Space.of(workloads.restore(before.workload), processor("native"))
    assert Tiling.from_json(renewed.final.default or {}) == space.default
    assert len(list(log.glob("*/*.json"))) == 2


@pytest.mark.parametrize("update", [False, True])
def test_a_record_that_does_not_win_again_is_told_and_can_be_removed(
    monkeypatch: pytest.MonkeyPatch, log: Path, capsys: pytest.CaptureFixture[str], update: bool
) -> None:
    assert run(monkeypatch, log, 1.2e-3, *["--update"] * update) == (0 if update else 1)
    assert capsys.readouterr().out == "odd: does not win again, +10.0% when it was made\n"
    assert len(list(log.glob("*/*.json"))) == (1 if update else 2)


def test_what_ships_is_of_layers_of_the_list() -> None:
    for folder in lookup.shipped_folder().iterdir():
        for path, record in shipped.winners(folder):
            assert path.parent == folder
            assert record.final is not None and record.final.gain > 0
