"""A run from its first candidate to its verdict, on a simulation: budgets, resuming, faults."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuning_simulation import SIMULATED, Simulation, seconds, task

from tvmconv.compute.tiling import Tiling
from tvmconv.errors import ConfigError, TargetError, TuningError
from tvmconv.schedules.space import Space
from tvmconv.tuning import lookup, records
from tvmconv.tuning.records import Failure, Record
from tvmconv.tuning.run import Result, processor, tune_tasks
from tvmconv.tuning.runners import Task
from tvmconv.tuning.session import Budget, Progress
from tvmconv.tuning.verdict import gains

TASK = task((1, 8, 8, 16, 16))
SPACE = Space.of(TASK.work, TASK.machine)


def measured(tiling: Tiling) -> float:
    return seconds(SPACE, tiling)


def slow_default(tiling: Tiling) -> float:
    """Times of a default that is easily beaten."""
    return measured(tiling) * (4 if tiling == SPACE.default else 1)


def run(
    tmp_path: Path,
    budget: Budget,
    tell: Callable[[Tiling], float | Failure] = measured,
    *,
    simulation: Simulation | None = None,
    tasks: list[Task] | None = None,
    seed: int = 0,
    callback: Callable[[Progress], None] | None = None,
) -> tuple[list[Result], list[Record]]:
    """A run, and the records in its log."""
    one = simulation or Simulation(tell, tmp_path / f"made{len(list(tmp_path.iterdir()))}")
    log = tmp_path / "log"
    results = tune_tasks(
        tasks or [TASK],
        budget,
        log=log,
        seed=seed,
        cost_model="random",
        builder=one,
        runner=one,
        measured_by=SIMULATED,
        callback=callback,
    )
    return results, stored(log)


def stored(log: Path) -> list[Record]:
    return [one for path in records.workload_files(log) for one in records.read_file(path)]


def test_every_candidate_is_a_record_and_the_winner_has_the_last_word(tmp_path: Path) -> None:
    (result,), found = run(tmp_path, Budget(trials=40), slow_default)
    trials = [one for one in found if one.final is None]
    assert [one.trial for one in trials] == list(range(41))
    assert Tiling.from_json(trials[0].decisions) == SPACE.default
    assert len({one.id for one in trials}) == 41
    assert {one.target["fingerprint"] for one in found} == {TASK.machine.fingerprint()}
    assert found[-1] == result.record
    assert result.record.final is not None
    assert result.gain > 0
    assert result.record.final.gain_low > 0
    assert result.record.final.default == trials[0].decisions != result.record.decisions
    assert result.record.final.median_s < result.record.final.default_s
    assert result.record.trace is not None
    assert {one.trial for one in trials if one.id == result.record.id} == {result.record.trial}
    key = result.record.workload_key
    place = [tmp_path / "log"]
    assert lookup.best(place, TASK.machine.fingerprint(), key) == result.record


def test_what_is_stored_is_never_slower_than_the_default(tmp_path: Path) -> None:
    simulation = Simulation(measured, tmp_path / "made")
    # Lucky in the search, slower in turns with the default.
    simulation.duel_factor = lambda tiling: 1.0 if tiling == SPACE.default else 9.0
    (result,), _ = run(tmp_path, Budget(trials=20), simulation=simulation)
    assert Tiling.from_json(result.record.decisions) == SPACE.default
    assert result.record.final is not None
    assert result.gain == result.record.final.gain_high == 0


def test_the_winner_meets_the_default_twice(tmp_path: Path) -> None:
    simulation = Simulation(slow_default, tmp_path / "made")
    (result,), _ = run(tmp_path, Budget(trials=20), simulation=simulation)
    assert [len(duel) for duel in simulation.duels] == [5, 2]
    assert simulation.duels[1] == [SPACE.default, Tiling.from_json(result.record.decisions)]


def test_a_winner_that_is_wrong_on_the_whole_layer_is_a_failure(tmp_path: Path) -> None:
    simulation = Simulation(slow_default, tmp_path / "made")
    (before,), _ = run(tmp_path, Budget(trials=20), simulation=simulation)
    wrong = Tiling.from_json(before.record.decisions)
    other = tmp_path / "other"
    other.mkdir()
    again = Simulation(slow_default, other / "made")
    again.wrong = {wrong}
    (result,), found = run(other, Budget(trials=20), simulation=again)
    assert Tiling.from_json(result.record.decisions) != wrong
    assert [one.error.reason for one in found if one.error] == ["wrong"]


def test_faults_are_records(tmp_path: Path) -> None:
    reasons = ("build", "timeout", "crash", "memory", "wrong", "run")
    trial: dict[Tiling, int] = {}

    def tell(tiling: Tiling) -> float | Failure:
        number = trial.setdefault(tiling, len(trial))
        if 0 < number <= len(reasons):
            return Failure(reasons[number - 1], "as told")
        return measured(tiling)

    (result,), found = run(tmp_path, Budget(trials=20), tell)
    assert [one.error.reason for one in found if one.error] == list(reasons)
    assert all(one.seconds is None for one in found if one.error)
    assert result.failed == len(reasons)


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    simulation = Simulation(measured, tmp_path / "made")
    simulation.interrupt_at = 17
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Budget(trials=40), simulation=simulation)
    assert len(stored(tmp_path / "log")) == 17  # all that were measured
    (result,), found = run(tmp_path, Budget(trials=30))
    assert result.resumed == 16
    ids = [one.id for one in found if one.final is None]
    assert len(ids) - len(set(ids)) == 1  # the default, which the others are compared with


def test_interrupted_again_and_again_it_ends_as_well_as_undisturbed(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    (undisturbed,), _ = run(whole, Budget(trials=240))
    for stop in (19, 28, 5, 40, 21, 26, 16, 34, 9, 23):  # 10 of them are the default again
        simulation = Simulation(measured, tmp_path / f"part{stop}")
        simulation.interrupt_at = stop
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Budget(trials=240), simulation=simulation)
        before = stored(tmp_path / "log")
    (result,), found = run(tmp_path, Budget(trials=29))
    assert found[: len(before)] == before  # nothing is lost
    done = [one.id for one in found if one.final is None]
    assert len(set(done)) == 241
    assert len(done) - len(set(done)) <= 0.05 * len(done)
    assert result.record.final is not None and undisturbed.record.final is not None
    # Both are the best of 240 drawn from some thousands, whose times differ by luck by a fifth.
    assert result.record.final.median_s <= 1.1 * undisturbed.record.final.median_s


@pytest.mark.parametrize("other", [{"cpu_model": "another"}, {"cores": 3}])
def test_records_of_another_machine_are_not_compared(tmp_path: Path, other: dict[str, Any]) -> None:
    run(tmp_path, Budget(trials=10))
    one = Simulation(measured, tmp_path / "made")
    (result,) = tune_tasks(
        [TASK],
        Budget(trials=5),
        log=tmp_path / "log",
        cost_model="random",
        builder=one,
        runner=one,
        measured_by={**SIMULATED, **other},
    )
    assert result.resumed == 0


def test_a_winner_from_elsewhere_is_tried_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = task((1, 8, 8, 12, 16))
    space = Space.of(beside.work, beside.machine)

    def tell(tiling: Tiling) -> float:
        return seconds(space, tiling) * (4 if tiling == space.default else 1)

    (near,), _ = run(tmp_path, Budget(trials=30), tell, tasks=[beside])
    assert near.gain > 0
    monkeypatch.setenv("TVMCONV_LOGS", str(tmp_path / "log"))
    simulation = Simulation(measured, tmp_path / "made")
    tune_tasks(
        [TASK], Budget(trials=3), log=tmp_path / "fresh", cost_model="random",
        builder=simulation, runner=simulation, measured_by=SIMULATED,
    )  # fmt: skip
    assert simulation.run[1] == SPACE.nearest(Tiling.from_json(near.record.decisions))


def test_early_stop(tmp_path: Path) -> None:
    (result,), _ = run(tmp_path, Budget(trials=500, early_stop=10), lambda _: 1e-3)
    assert 10 <= result.trials < 40
    assert result.gain == 0


@pytest.mark.parametrize(("call_s", "most_s"), [(1.0, 14.0), (30.0, 70.0)])
def test_what_was_built_when_the_time_is_up_is_run_unless_it_hangs(
    call_s: float, most_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("tvmconv.tuning.session.time", SimpleNamespace(monotonic=lambda: now[0]))

    def tell(tiling: Tiling) -> float:
        now[0] += call_s / 2  # once when it is built, once when it is run
        return measured(tiling)

    simulation = Simulation(tell, tmp_path / "made")
    ended: list[float] = []

    def seen(progress: Progress) -> None:
        if progress.step == "building the best":
            ended.append(now[0])

    run(tmp_path, Budget(seconds=12), simulation=simulation, callback=seen)
    assert ended[0] <= most_s + 2 * call_s  # the default comes on top
    if call_s < 2:
        assert len(simulation.run) == len(simulation.tilings)


def test_a_small_space_ends_the_search(tmp_path: Path) -> None:
    from tvmconv.config import LayerConfig

    small = task((1, 1, 2, 3, 4), LayerConfig(4, 1), "direct")
    space = Space.of(small.work, small.machine, "direct")
    (result,), _ = run(tmp_path, Budget(seconds=600), lambda t: seconds(space, t), tasks=[small])
    assert result.trials == len(list(space.all())) - 1


def test_layers_share_a_budget_by_what_they_promise(tmp_path: Path) -> None:
    from tvmconv.config import LayerConfig

    large, small = (
        task((1, 8, 8, size, 16), LayerConfig(16, 3, strides=2, padding="same", name=name))
        for name, size in (("large", 16), ("small", 8))
    )
    spaces = {one.name: Space.of(one.work, one.machine) for one in (large, small)}

    one = Simulation(measured, tmp_path / "made")
    one.tell_of = lambda task, tiling: seconds(spaces[task.name], tiling)
    results, found = run(tmp_path, Budget(trials=60), simulation=one, tasks=[large, small])
    assert [one.layer for one in results] == ["large", "small"]
    trials = {one.layer: one.trials for one in results}
    assert trials["large"] > trials["small"] > 0
    assert sum(trials.values()) <= 61
    assert len({one.workload_key for one in found}) == 2


def test_progress_tells_what_happens(tmp_path: Path) -> None:
    seen: list[Progress] = []
    run(tmp_path, Budget(trials=10), callback=seen.append)
    assert [one.trials for one in seen] == sorted(one.trials for one in seen)
    steps = list(dict.fromkeys(one.step for one in seen))
    assert steps == [
        "measuring the default", "searching", "building the best", "checking the whole layer",
        "measuring the best again", "done",
    ]  # fmt: skip
    assert seen[-1].limit_gflops == 100.0
    assert seen[-1].best_s is not None


def test_a_default_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    def tell(tiling: Tiling) -> Failure:
        return Failure("crash", "SIGSEGV")

    with pytest.raises(TuningError, match="the default schedule does not run: SIGSEGV"):
        run(tmp_path, Budget(trials=3), tell)
    assert len(stored(tmp_path / "log")) == 1


@pytest.mark.parametrize(
    "budget", [Budget(seconds=0), Budget(trials=0), Budget(early_stop=-1), Budget(float("nan"))]
)
def test_a_budget_of_nothing_is_refused(budget: Budget, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="above 0"):
        run(tmp_path, budget)


def test_a_log_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    simulation = Simulation(measured, tmp_path / "made")
    with pytest.raises(TuningError, match="log cannot be written"):
        run(tmp_path, Budget(trials=3), simulation=simulation)
    assert simulation.run == []


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "log"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "none", str(place)]
    if (
        not shutil.which("mount")
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    try:
        with pytest.raises(TuningError, match=r"log \S+ cannot be written: No space left") as error:
            run(tmp_path, Budget(trials=200))
        assert "\n" not in str(error.value)
        before = stored(place)  # whole lines, or there would be a warning and fewer of them
        assert len(before) > 10
        (path,) = records.workload_files(place)
        assert len(path.read_text().splitlines()) == len(before)
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        (result,), found = run(tmp_path, Budget(trials=5))
        assert result.resumed == len(before) - 1
        assert found[: len(before)] == before
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_target_that_this_machine_is_not_needs_a_device() -> None:
    with pytest.raises(TargetError, match=re.escape("'x86-64-v3-avx2+sse4a+fma4'")):
        processor("x86-64-v3-avx2+sse4a+fma4")
    with pytest.raises(TargetError, match="one processor at a time"):
        processor("x86-64-v2|x86-64-v3")


def test_gains_are_medians_with_an_interval() -> None:
    middle, low, high = gains([(1.1, 1.0)] * 20 + [(1.2, 1.0), (0.5, 1.0)])
    assert (round(middle, 6), round(low, 6), round(high, 6)) == (0.1, 0.1, 0.1)
    middle, low, high = gains([(1.0, 1.0 + 0.01 * (n % 5 - 2)) for n in range(30)])
    assert low < 0 < high and abs(middle) < 0.02


def test_a_damaged_log_is_read_as_far_as_it_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, Budget(trials=10))
    (path,) = records.workload_files(tmp_path / "log")
    text = path.read_text()
    path.write_text(text[: len(text) - 50])
    with caplog.at_level(logging.WARNING):
        (result,), _ = run(tmp_path, Budget(trials=5))
    assert result.resumed == 10
    assert "is damaged and left out" in caplog.text
