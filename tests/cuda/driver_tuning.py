"""Tuning for a CUDA device on the fake driver, whole: run by test_cuda_launcher.py.

Candidates are compiled for emulated threads (emulated_nvcc.py) and timed by the events of a driver
whose clock a model moves on: times are the same in every run, whatever else the machine does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_samples import needs_gcc

import tvmconv
from tvmconv import cuda_machine, targets
from tvmconv.cli import main
from tvmconv.codegen import device
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import TargetError
from tvmconv.reference import conv3d_transpose
from tvmconv.runtime import cuda_driver
from tvmconv.schedules.space import Space
from tvmconv.tuning import cuda_use, platforms, records, runners
from tvmconv.tuning.cuda_runner import CudaRunner
from tvmconv.tuning.device import FOUND, SPEC
from tvmconv.tuning.fleet import Fleet
from tvmconv.tuning.run import task_of, tune_tasks
from tvmconv.tuning.runners import LocalBuilder, Task
from tvmconv.tuning.session import Budget

SOURCES = Path(__file__).parent
CONFIG = LayerConfig(16, 3, strides=2, padding="same", activation="relu", name="up1")
SHAPE = (1, 2, 3, 4, 16)
#: Instead of a kernel: what it does, the reason that a record gives, words of its detail.
FAULTS = {
    "fault": ("return 700;", "crash", "700"),
    "refused": ("return 1;", "crash", "launch failure"),
    "hang": ("for (;;) sleep(1);", "timeout", "no answer after"),
    "wrong": ("memset(*(void **)p[3], 0, 12288);", "wrong", "off by"),
    "nothing": ("", "wrong", "not finite"),
    "abort": ("_exit(3);", "crash", "exit code 3"),
}


@pytest.fixture(autouse=True)
def emulated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "nvcc"
    paths = os.pathsep.join([str(SOURCES), str(SOURCES.parent)])
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={paths} exec {sys.executable} {SOURCES}/emulated_nvcc.py "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("NVCC", str(script))
    monkeypatch.setenv("EMULATED_KERNELS", str(tmp_path / "kernels"))
    monkeypatch.setenv("FAKE_DEVICES", "1")
    monkeypatch.setenv("FAKE_SLOWNESS", "500000")
    monkeypatch.setenv("TVMCONV_LOGS", "none")


def task(shape: tuple[int | None, ...] = SHAPE, config: LayerConfig = CONFIG) -> Task:
    machine = cuda_machine.here("cuda:native")
    return Task(config.name, config, shape, Workload.of(config, shape), machine)


def space_of(one: Task) -> Space:
    return platforms.space(one.work, one.machine)


def layer() -> tvmconv.Conv3DTranspose:
    made = tvmconv.Conv3DTranspose.from_config(CONFIG)
    made.build(SHAPE)
    rng = np.random.default_rng(0)
    made.set_weights([rng.normal(size=w.shape).astype(w.dtype) for w in made.get_weights()])
    return made


def compiled(folder: Path, logs: Path | str, target: str = "cuda:sm_80", **more: Any) -> Any:
    shape = more.pop("shape", SHAPE)
    return tvmconv.compile(layer(), shape, target=target, output=folder, logs=logs, **more)


@needs_gcc
def test_a_run_and_what_compiling_makes_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, log, page = tmp_path / "up1.json", tmp_path / "log", tmp_path / "page.html"
    config = {"module": "keras.layers", "class_name": "Conv3DTranspose"}
    source.write_text(json.dumps({**config, "config": CONFIG.get_config()}))
    arguments = [
        "tune", str(source), "--input-shape", "1,2,3,4,16", "--target", "cuda:native",
        "--trials", "3", "--jobs", "1", "--cost-model", "random", "--logs", str(log),
        "--report", str(page), "--json",
    ]  # fmt: skip
    assert main(arguments) == 0
    (told,) = json.loads(capsys.readouterr().out)["layers"]
    found = [one for path in records.workload_files(log) for one in records.read_file(path)]
    assert [one.trial for one in found if one.final is None] == list(range(4))
    assert {one.target["fingerprint"] for one in found} == {"cuda-80"}
    assert found[0].machine == {
        "cpu_model": "Fake GPU 0", "cores": 8, "clock_mhz": 1000, "driver": "13.0"
    }  # fmt: skip
    one = task()
    space = space_of(one)
    assert CudaTiling.from_json(found[0].decisions) == space.default
    # 64 lanes at 1 GHz in 8 multiprocessors, unless 128 GB/s are less.
    assert found[0].limit_gflops == pytest.approx(platforms.limit_gflops(one.machine, one.work, 1))
    assert 100 < (found[0].limit_gflops or 0) <= 1024
    final = told["final"]
    assert found[-1].final is not None and found[-1].id == told["record"]
    assert final["gain"] >= 0 and final["median_s"] <= final["default_s"]
    assert final["max_error"] < 1e-5
    assert "Fake GPU 0, 8 multiprocessors" in page.read_text()
    assert main(["logs", "show", "up1", "--logs", str(log)]) == 0
    assert "Fake GPU 0" in capsys.readouterr().out

    artifact = compiled(tmp_path / "tuned", log)
    schedule = artifact.manifest.schedule
    assert schedule["origin"] == f"record:{told['record']}"
    assert (schedule["transfer"], schedule["cores"]) == ([False], [8])
    assert schedule["decisions"] == [told["decisions"]]
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    kernel, bias = layer().get_weights()
    expected = conv3d_transpose(CONFIG, x, kernel, bias)
    np.testing.assert_allclose(artifact.load()(x), expected, rtol=1e-4, atol=1e-4)
    near = compiled(tmp_path / "near", log, shape=(1, 2, 3, 5, 16)).manifest.schedule
    assert near["origin"] == schedule["origin"] and near["transfer"] == [True]
    both = compiled(tmp_path / "both", log, target="cuda:sm_80,sm_86").manifest
    assert both.schedule["origin"] == "default"  # the other architecture was not asked
    none = compiled(tmp_path / "none", "none").manifest.schedule
    assert none["origin"] == "default" and none["cores"] == [None]
    beside = compiled(tmp_path / "beside", log, target="cuda:sm_80|native").manifest
    assert beside.target["cuda"]["origins"] == [schedule["origin"]]


@needs_gcc
@pytest.mark.parametrize(
    ("asked", "form", "allowed"),
    [
        ({"algorithm": "toom-cook"}, "toom-cook", 1e-5),
        ({"precision": "tf32"}, "mma", 3e-3),
    ],
)
def test_what_rounds_otherwise(
    asked: dict[str, str], form: str, allowed: float, tmp_path: Path
) -> None:
    machine = cuda_machine.here("cuda:native")
    one = task_of(CONFIG.name, CONFIG, SHAPE, machine, **asked)
    log = tmp_path / "log"
    (result,) = tune_tasks([one], Budget(trials=1), log=log, jobs=1, cost_model="random")
    found = [r for path in records.workload_files(log) for r in records.read_file(path)]
    assert len(found) == 3 and all(r.error is None for r in found), found
    assert {r.decisions["form"] for r in found} == {form}
    assert result.record.final is not None and result.record.final.max_error < allowed
    artifact = compiled(tmp_path / "tuned", log, **asked)
    cuda = artifact.manifest.target["cuda"]
    assert cuda["origins"] == [f"record:{result.record.id}"]
    assert (cuda["algorithm"] == "toom-cook") == (form == "toom-cook")
    assert cuda["precision"] == [asked.get("precision", "full")]
    assert compiled(tmp_path / "plain", log).manifest.target["cuda"]["origins"] == ["default"]
    x = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    kernel, bias = layer().get_weights()
    expected = conv3d_transpose(CONFIG, x, kernel, bias)
    scale = float(np.abs(expected).max())
    assert np.abs(artifact.load()(x) - expected).max() < allowed * scale


def candidates(space: Space) -> dict[str, CudaTiling]:
    """For each fault other launch bounds, which is how faults find their kernels."""
    by_bounds: dict[str, CudaTiling] = {}
    for one in space.all():
        assert isinstance(one, CudaTiling)
        by_bounds.setdefault(bounds(one), one)
    del by_bounds[bounds(space.default)]
    return dict(zip(FAULTS, by_bounds.values(), strict=False))


def bounds(tiling: Any) -> str:
    """What stands behind __launch_bounds__ of its kernel."""
    return f"{tiling.threads}, {tiling.resident}" if tiling.resident else str(tiling.threads)


@needs_gcc
def test_faults_are_records_with_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task()
    space = space_of(one)
    bad = candidates(space)
    assert list(bad) == list(FAULTS)
    faults = {bounds(tiling): FAULTS[name][0] for name, tiling in bad.items()}
    monkeypatch.setenv("EMULATED_FAULTS", json.dumps(faults))
    assert isinstance(one.machine, cuda_machine.CudaMachine)
    # A call of the default takes seconds by the driver's clock, which no kernel here waits for.
    monkeypatch.setattr(runners, "_HANGING", 0.1)
    builder, runner = LocalBuilder(1), CudaRunner(one.machine)
    try:
        built = builder.build(one, [space.default, *bad.values()])
        assert built[0].folder is not None
        assert runner.prepare(one, built[0].folder) is None
        before = runner.time(built[0].folder, None)
        assert before.seconds is not None
        for name, made in zip(bad, built[1:], strict=True):
            assert made.folder is not None, made.failure
            monkeypatch.setattr(runner, "_run_s", 2.0 if name == "hang" else 60.0)
            timed = runner.time(made.folder, None)
            assert timed.failure is not None
            assert timed.failure.reason == FAULTS[name][1], name
            assert FAULTS[name][2] in timed.failure.detail
        # None of it disturbs what comes after.
        assert runner.time(built[0].folder, None).seconds == before.seconds
        rows = runner.duel([built[0].folder, built[0].folder], before.seconds[0])
        assert len(rows) >= 7 and {round(s, 9) for row in rows for s in row} == {
            round(before.seconds[0], 9)
        }
        (error,) = runner.check([built[0].folder])
        assert error is not None and error < 1e-5
    finally:
        runner.close()
        builder.close()


@needs_gcc
def test_devices_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tornado", reason="TVM's RPC tracker needs tornado")
    from rpc_fleet import devices

    there = cuda_machine.elsewhere("cuda:sm_80", targets.native().triple)
    one = dataclasses.replace(task(), machine=there)
    space = space_of(one)
    bad = {name: found for name, found in candidates(space).items() if name in ("fault", "wrong")}
    faults = {bounds(tiling): FAULTS[name][0] for name, tiling in bad.items()}
    monkeypatch.setenv("EMULATED_FAULTS", json.dumps(faults))
    builder = LocalBuilder(1)
    try:
        few = platforms.space(one.work, there, "toom-cook").default
        built = [b.folder for b in builder.build(one, [space.default, few, *bad.values()])]
        default, toom_cook, faulty, wrong = (folder for folder in built if folder is not None)
        with devices(tmp_path, 1) as (lab, _):
            runner = Fleet(lab.tracker)
            try:
                assert runner.prepare(one, default) is None
                good = runner.time(default, None)
                assert good.seconds == pytest.approx([good.seconds[0]] * len(good.seconds))  # type: ignore[index]
                assert runner.time(toom_cook, None).seconds is not None
                failure = runner.time(faulty, None).failure
                assert failure is not None and failure.reason == "crash"
                assert "the library answered 1700" in failure.detail
                failure = runner.time(wrong, None).failure
                assert failure is not None and failure.reason == "wrong"
                rows = runner.duel([default, default], good.seconds[0])  # type: ignore[index]
                assert rows[0][0] == pytest.approx(rows[-1][1]) == pytest.approx(good.seconds[0])  # type: ignore[index]
                (error,) = runner.check([default])
                assert error is not None and error < 1e-5
            finally:
                runner.close()
        assert good.seconds is not None
        assert program(tmp_path, default) == pytest.approx(good.seconds[0])
    finally:
        builder.close()


def program(place: Path, folder: Path) -> float:
    """Seconds of a call, by the program that goes to devices over ssh."""
    header, archive = (folder / "candidate.h", folder / "libcandidate.a")
    made = device.program(
        "candidate", header.read_bytes(), archive.read_bytes(), targets.native().triple
    )
    (place / "program").write_bytes(made)
    (place / "program").chmod(0o700)
    np.ones(SHAPE, np.float32).tofile(place / "input")
    np.load(folder / "packed.npy").tofile(place / "packed")
    numbers = {"least": 3, "calls": 3, "timeout_ms": 300_000, "output_bytes": 4, "input_bytes": 4}
    spec = [str(numbers.get(name, 0)) for name in SPEC]
    done = subprocess.run(
        [place / "program", *spec, place / "input", place / "packed", "-"],
        capture_output=True, check=True,
    )  # fmt: skip
    state, detail, count, *seconds = np.frombuffer(done.stdout[: 8 * (FOUND + 3)]).tolist()
    assert (state, detail, count) == (0, 0, 3)
    values = np.frombuffer(done.stdout[8 * (FOUND + 3) :], np.float32)
    assert values.size == 4 * 6 * 8 * 16 and np.isfinite(values).all()
    return float(min(seconds))


@needs_gcc
def test_a_default_that_faults_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = task()
    monkeypatch.setenv(
        "EMULATED_FAULTS", json.dumps({bounds(space_of(one).default): "return 700;"})
    )
    with pytest.raises(tvmconv.errors.TuningError, match=r"does not run: .*1700"):
        tune_tasks([one], Budget(trials=2), log=tmp_path / "log", jobs=1, cost_model="random")


def test_the_device_that_is_tuned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cuda_machine.here("cuda:sm_80")
    assert found == cuda_machine.here("cuda:native")
    assert found.cores == 8 and found.fingerprint() == "cuda-80"
    refused: Sequence[tuple[str, str]] = (
        ("cuda:sm_90", "needs such a device; here are sm_80 (Fake GPU 0)"),
        ("cuda:sm_80,sm_90", "one CUDA architecture at a time"),
        ("cuda:sm_80|native", "one CUDA architecture at a time"),
        ("cuda:sm_72", "no longer builds for sm_72"),
    )
    for text, words in refused:
        with pytest.raises(TargetError, match=re.escape(words)):
            cuda_machine.here(text)
    monkeypatch.setenv("FAKE_DEVICES", "2")
    with pytest.raises(TargetError, match="one CUDA architecture"):
        cuda_machine.here("cuda:native")
    second = cuda_machine.here("cuda:sm_86").hardware
    assert second is not None and second.index == 1


def test_records_of_as_many_multiprocessors_come_first(tmp_path: Path) -> None:
    one = task()
    assert isinstance(one.machine, cuda_machine.CudaMachine)
    about = one.machine.hardware
    assert about is not None
    space = space_of(one)
    others = [t for t in space.all() if t != space.default][:2]
    for cores, tiling in zip((8, 108), others, strict=True):
        hardware = dataclasses.replace(about, multiprocessors=cores)
        machine = dataclasses.replace(one.machine, hardware=hardware)
        decisions = tiling.to_json()
        key = records_key(one)
        records.append(
            tmp_path,
            [
                records.Record(
                    records.identity(key, "cuda-80", decisions), "run", 1, f"2026-01-0{cores % 9}",
                    machine.described(), machine.measured_by(), described(one), key, "up1",
                    decisions, None, (1e-3,), None, 1.0, None,
                    records.Final(1e-3, 2e-3, 1.0, 0.9, 1.1, 9, 1e-6), records.tvm_version(), "",
                )
            ],
        )  # fmt: skip
    targets = [one.machine.architecture]
    for count, expected in ((8, others[0]), (108, others[1]), (None, others[0])):
        (choice,) = cuda_use.choose([one.work], targets, logs=tmp_path, multiprocessors=count)
        assert choice.tiling == expected, count
        assert choice.origin.startswith("record:")
    (exact,) = cuda_use.choose([one.work], targets, logs=tmp_path, exact=True)
    assert exact.origin == "default"


def described(one: Task) -> dict[str, Any]:
    from tvmconv.tuning import workloads

    return workloads.describe(one.work)


def records_key(one: Task) -> str:
    from tvmconv.tuning import workloads

    return workloads.key(described(one))


def test_what_the_driver_says() -> None:
    about = cuda_driver.hardware(0)
    assert (about.name, about.capability, about.multiprocessors) == ("Fake GPU 0", (8, 0), 8)
    assert (about.clock_khz, about.memory_khz, about.bus_bits) == (1_000_000, 2_000_000, 256)
    assert about.driver == "13.0"
