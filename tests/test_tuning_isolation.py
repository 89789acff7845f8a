"""Child processes: what a candidate does to one costs that candidate alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tuning_faults import FaultyBuilder
from tuning_records import CONFIG

from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.schedules.space import Space
from tvmconv.tuning import lookup, records
from tvmconv.tuning.processes import Child, ChildError
from tvmconv.tuning.run import processor, tune_tasks
from tvmconv.tuning.runners import LocalBuilder, LocalRunner, Task
from tvmconv.tuning.session import Budget

SHAPE = (1, 3, 4, 6, 16)
#: A machine that is busy elsewhere may stop these processes for minutes.
PATIENCE_S = 400


def layer_task() -> Task:
    work = Workload.of(CONFIG, SHAPE)
    return Task("up", CONFIG, SHAPE, work, processor("native"), "direct")


def child(program: str, memory: int = 1 << 30) -> Child:
    """A child that runs a program with ``reply`` defined."""
    head = "import json, sys, time, os\ndef reply(v): print(json.dumps(v), flush=True)\nreply({})\n"
    return Child("test", memory, [sys.executable, "-c", head + program])


def failure(one: Child, seconds: float = PATIENCE_S) -> tuple[str, str]:
    with pytest.raises(ChildError) as caught:
        one.ask({"n": 1}, seconds)
    one.close()
    return caught.value.failure.reason, caught.value.failure.detail


def test_a_child_answers_one_request_after_the_other() -> None:
    one = child("for line in sys.stdin: reply({'twice': 2 * json.loads(line)['n']})")
    assert [one.ask({"n": n}, PATIENCE_S) for n in (1, 2)] == [{"twice": 2}, {"twice": 4}]
    one.close()
    assert not one.running


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("input(); os.kill(os.getpid(), 11)", ("crash", "SIGSEGV")),
        ("input(); os.abort()", ("crash", "SIGABRT")),
        ("input(); sys.exit(7)", ("crash", "it ended with exit code 7")),
        ("input(); os.kill(os.getpid(), 9)", ("memory", "killed by the system")),
        ("input(); reply({'error': ['wrong', 'off by one']})", ("wrong", "off by one")),
    ],
)
def test_how_a_child_ends_says_why(program: str, expected: tuple[str, str]) -> None:
    reason, detail = failure(child(program))
    assert reason == expected[0]
    assert expected[1] in detail


def test_a_child_that_hangs_is_killed() -> None:
    assert failure(child("time.sleep(10**6)"), 0.5)[0] == "timeout"


def test_a_child_that_takes_too_much_memory_is_killed() -> None:
    program = "input()\nheld = [b'x' * (1 << 20) for _ in range(600)]\ntime.sleep(10**6)"
    reason, detail = failure(child(program, 200 << 20))
    assert reason == "memory"
    assert "200 are allowed" in detail


def test_after_a_death_there_is_a_new_child() -> None:
    one = child("n = json.loads(input())['n']\nif n: os.abort()\nreply({'alive': True})")
    assert failure(one)[0] == "crash"
    assert one.ask({"n": 0}, PATIENCE_S) == {"alive": True}
    one.close()


def test_the_runner_loads_no_tvm() -> None:
    program = "import sys, tvmconv.tuning.running; assert 'tvm' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_faults_in_a_candidate_become_records_with_their_reason(tmp_path: Path) -> None:
    task = layer_task()
    space = Space.of(task.work, task.machine, "direct")
    others = [tiling for tiling in space.all() if tiling != space.default]
    reasons = ("crash", "timeout", "memory", "wrong", "build")
    step = len(others) // 8
    faults = {others[n * step]: reason for n, reason in enumerate(reasons)}
    place = tmp_path / "made"
    place.mkdir()
    builder, runner = FaultyBuilder(faults, place), LocalRunner(run_s=60.0)
    impatient = LocalRunner(run_s=2.0)  # for the one that never ends
    (default,) = builder.build(task, [space.default])
    assert default.folder is not None
    for one in (runner, impatient):
        assert one.prepare(task, default.folder) is None
        # How long a call may hang follows from how long the default takes.
        assert one.time(default.folder, None).seconds is not None
    found = {}
    for built in builder.build(task, list(faults)):
        endless = faults[built.tiling] == "timeout"
        judge = impatient if endless else runner
        timed = judge.time(built.folder, 1.0) if built.folder else built
        assert timed.failure is not None
        found[faults[built.tiling]] = timed.failure.reason
    good = builder.build(task, [others[-1]])[0]
    assert good.folder is not None
    assert runner.time(good.folder, None).seconds is not None  # none of it disturbed this one
    runner.close()
    impatient.close()
    assert found == {reason: reason for reason in reasons}


def test_a_real_run(tmp_path: Path) -> None:
    task = layer_task()
    (result,) = tune_tasks(
        [task], Budget(trials=3), log=tmp_path, jobs=1, cost_model="random", seed=1
    )
    found = [one for path in records.workload_files(tmp_path) for one in records.read_file(path)]
    assert [one.trial for one in found if one.final is None] == [0, 1, 2, 3]
    assert all(one.seconds for one in found)  # legal candidates run
    final = result.record.final
    assert final is not None
    assert final.max_error < 1e-4
    assert (
        final.gain_low > 0
        or Tiling.from_json(result.record.decisions)
        == Space.of(task.work, task.machine, "direct").default
    )
    best = lookup.best([tmp_path], task.machine.fingerprint(), result.record.workload_key)
    assert best == result.record


def test_a_build_that_fails_is_a_failure(tmp_path: Path) -> None:
    builder = LocalBuilder(1)
    (built,) = builder.build(layer_task(), [Tiling("phase", 8, 2, 2, 1, splits=0)])
    builder.close()
    assert built.folder is None
    assert built.failure is not None
    assert built.failure.reason == "build"


def command(tmp_path: Path, *more: str) -> list[str]:
    source = tmp_path / "up.json"
    source.write_text(json.dumps(CONFIG.get_config()))
    return [
        sys.executable, "-m", "tvmconv", "tune", str(source), "--input-shape", "1,3,4,6,16",
        "--logs", str(tmp_path / "log"), "--jobs", "1", "--cost-model", "random",
        "--algorithm", "direct", *more,
    ]  # fmt: skip


def stored(tmp_path: Path) -> list[records.Record]:
    paths = records.workload_files(tmp_path / "log")
    return [one for path in paths for one in records.read_file(path)]


def wait_for_records(tmp_path: Path, process: subprocess.Popen[str], count: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while len(stored(tmp_path)) < count:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.1)


def test_killed_and_interrupted_it_keeps_what_it_knows(tmp_path: Path) -> None:
    # Killed as by the system, in the middle of whatever it does.
    process = subprocess.Popen(
        command(tmp_path, "--trials", "500"),
        stdout=subprocess.DEVNULL,
        env={**os.environ, "TVMCONV_LOGS": str(tmp_path)},
        text=True,
    )
    wait_for_records(tmp_path, process, 2)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)
    wait_for_orphans(tmp_path)
    before = stored(tmp_path)
    assert len(before) >= 2

    # Interrupted by Ctrl-C: it says how to go on.
    process = subprocess.Popen(
        command(tmp_path, "--trials", "500"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TVMCONV_LOGS": str(tmp_path)},
        text=True,
    )
    wait_for_records(tmp_path, process, len(before) + 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert err.splitlines() == ["tvmconv: error: interrupted"]
    assert "the same command goes on from there" in out

    found = stored(tmp_path)
    assert found[: len(before)] == before
    trials = [one.id for one in found if one.trial > 0]
    assert len(trials) == len(set(trials))
    wait_for_orphans(tmp_path)


def wait_for_orphans(tmp_path: Path) -> None:
    """No child process outlives its parent, however that ended."""
    end = time.monotonic() + PATIENCE_S
    while left := [pid for pid in Path("/proc").glob("[0-9]*") if began_here(pid, tmp_path)]:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def began_here(process: Path, tmp_path: Path) -> bool:
    try:
        return str(tmp_path).encode() in (process / "environ").read_bytes()
    except OSError:  # gone, or another user's
        return False
