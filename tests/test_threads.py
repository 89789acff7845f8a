"""The thread pool of a generated library: many callers, fork, unloading, refused threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from pathlib import Path

import c_driver
import numpy as np
import pytest
import sample_library as sample

from tvmconv.artifact import Artifact
from tvmconv.codegen import link


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("threads")
    return link(sample.parts(folder), folder / "out")


@pytest.fixture(scope="module")
def driver(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return c_driver.driver(artifact, tmp_path_factory.mktemp("driver"))


def test_many_threads_call_at_once(driver: Path) -> None:
    assert "good" in c_driver.run(driver, "storm", 3, 4)


@pytest.mark.nightly
def test_many_threads_call_for_a_minute(driver: Path) -> None:
    assert "good" in c_driver.run(driver, "storm", 60, 6)


def test_fork_before_after_and_during_calls(driver: Path) -> None:
    assert "good" in c_driver.run(driver, "fork", 1, 4)


def test_unloading_leaves_no_thread_and_no_memory(artifact: Artifact, tmp_path: Path) -> None:
    program = c_driver.compile_c(
        tmp_path / "reload", c_driver.C_SOURCES / "reload.c", *c_driver.TAIL
    )
    size = 4 * int(np.prod((2, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)))
    assert "good" in c_driver.run(program, artifact.library, "up1", 1000, size, size)


@pytest.mark.parametrize("allowed", [0, 1, 2])
@pytest.mark.parametrize("mode", ["guard", "nest"])
def test_threads_that_cannot_be_created_are_done_without(
    artifact: Artifact, tmp_path: Path, mode: str, allowed: int
) -> None:
    starved = c_driver.C_SOURCES / "starved.c"
    program = c_driver.driver(artifact, tmp_path, starved, static=True)
    assert "good" in c_driver.run(program, mode, 1, 6, ALLOWED_THREADS=str(allowed))


def _threads(most: int = 0) -> int:
    """Threads of this process; a joined one is listed for a moment: wait for ``most`` of them."""
    end = time.monotonic() + 2
    while (found := len(list(Path("/proc/self/task").iterdir()))) > most > 0:
        if time.monotonic() > end:
            break
        time.sleep(0.001)
    return found


def _call(library: sample.Library, threads: int) -> bool:
    shape = (2, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    y = np.empty_like(x)
    workspace = np.empty(library["workspace_size"](0, threads), np.uint8)
    args = sample.Args(
        size=ctypes.sizeof(sample.Args),
        input=x.ctypes.data,
        output=y.ctypes.data,
        workspace=workspace.ctypes.data,
        workspace_size=workspace.nbytes,
        threads=threads,
    )
    return library.run(args) == 0 and np.array_equal(y, sample.expected(x))


def test_one_thread_starts_none_and_three_start_two(tmp_path: Path) -> None:
    # A library of its own: the pool belongs to the loaded library, and others used theirs already.
    artifact = link(sample.parts(tmp_path, "lonely"), tmp_path / "out")
    library = sample.Library(artifact.path, "lonely")
    before = _threads()
    assert _call(library, 1)
    assert _threads() == before
    assert _call(library, 3)
    assert _threads() == before + 2
    assert _call(library, 2)
    assert _threads() == before + 2


def _states() -> list[str]:
    """What the other threads of this process do: R runs, S sleeps."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a joined one is listed for a moment
            if int(task.name) != threading.get_native_id():
                text = (task / "stat").read_text(encoding="utf-8")
                found.append(text.rpartition(")")[2].split()[0])
    return found


def test_threads_that_wait_for_a_call_fall_asleep(artifact: Artifact) -> None:
    assert _call(sample.Library(artifact.path), 3)
    end = time.monotonic() + 60
    while (states := _states()) != ["S"] * len(states) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(states) >= 2
    assert states == ["S"] * len(states)


def test_callers_that_come_and_go_leave_no_threads(artifact: Artifact) -> None:
    library = sample.Library(artifact.path)
    assert _call(library, 3)
    before = _threads()
    results: list[bool] = []
    for _ in range(20):
        thread = threading.Thread(target=lambda: results.append(_call(library, 3)))
        thread.start()
        thread.join()
    assert results == [True] * 20
    assert _threads(before) <= before


def test_the_default_number_of_threads_is_the_builders(tmp_path: Path) -> None:
    parts = sample.with_threads(sample.parts(tmp_path, "fixed"), 3)
    library = sample.Library(link(parts, tmp_path / "out").path, "fixed")
    size = library["workspace_size"]
    assert size(0, 0) == size(0, 3) == 3 * sample.SCRATCH + 64


def test_zero_threads_are_the_processors_of_the_process(artifact: Artifact) -> None:
    library = sample.Library(artifact.path)
    tasks = (library["workspace_size"](1, 0) - 64) // sample.SCRATCH
    allowed = len(os.sched_getaffinity(0))
    assert 1 <= tasks <= allowed  # a control group may grant less


@pytest.mark.parametrize("suffix", ["so", "a"])
@pytest.mark.parametrize("way", ["task", "thread", "late"])
def test_the_process_can_end_at_any_time(
    artifact: Artifact, tmp_path: Path, way: str, suffix: str
) -> None:
    library = artifact.path / f"libup1.{suffix}"
    source = c_driver.C_SOURCES / "leave.c"
    include = f"-I{artifact.path}"
    runtime = f"-Wl,-rpath,{artifact.path}"
    program = c_driver.compile_c(
        tmp_path / "leave", include, source, library, runtime, *c_driver.TAIL
    )
    for _ in range(10):
        result = subprocess.run([program, way], timeout=600, check=False)
        assert result.returncode == 7
