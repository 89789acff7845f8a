"""`bench`: that it measures what it says. How fast anything is belongs into benchmarks/."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sample_library as sample

import tvmconv
from tvmconv import measure
from tvmconv.artifact import Artifact
from tvmconv.codegen import link
from tvmconv.errors import ArtifactError, ConfigError


@pytest.fixture(scope="module", params=[True, False], ids=["baked", "external"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("built")
    return link(sample.parts(folder, baked=request.param), folder / "out")


@pytest.fixture(autouse=True)
def small_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SIDE", 128)


def test_one_measurement_for_each_shape(built: Artifact) -> None:
    steps: list[str] = []
    start = time.perf_counter()
    found = tvmconv.bench(built.path, threads=1, seconds=0.1, progress=steps.append)
    took = time.perf_counter() - start
    assert [one.input_shape[0] for one in found] == [2, 1]  # batch 1 where it is open
    assert len(steps) == 2
    for one, flops in zip(found, built.manifest.flops, strict=True):
        assert (one.name, one.threads) == ("up1", 1)
        assert one.calls > 10
        times = [one.fastest_s, one.p10_s, one.median_s, one.p90_s, one.slowest_s, took]
        assert times[0] > 0
        assert times == sorted(times)
        assert one.calls * one.fastest_s < took
        assert one.spread == pytest.approx((one.p90_s - one.p10_s) / one.median_s)
        assert one.gflops == pytest.approx(flops * one.input_shape[0] / one.median_s / 1e9)
        assert one.gemm_dtype == "float32"
        assert one.gemm_gflops is not None
        assert one.gemm_gflops > 0.1
        assert one.share == pytest.approx(one.gflops / one.gemm_gflops)


def test_what_may_be_measured(built: Artifact) -> None:
    for source in (built, built.load(), str(built.path / "up1.json")):
        (first, _) = tvmconv.bench(source, seconds=0.02)
        assert first.threads == measure._usable_cores()
    layer = built.load(threads=2)
    assert tvmconv.bench(layer, seconds=0.02)[0].threads == 2


def test_several_numbers_of_threads(built: Artifact) -> None:
    layer = built.load(threads=2)
    found = tvmconv.bench(layer, threads=(1, 0, None, 3), seconds=0.01)
    cores = measure._usable_cores()
    assert [one.threads for one in found] == [1, cores, 2, 3] * 2
    assert [one.input_shape[0] for one in found] == [2] * 4 + [1] * 4
    assert layer.threads == 2
    assert layer.has_weights is (built.manifest.weights["mode"] == "baked")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000\n", 2), ("1000 100000\n", 1), ("9900000 100000\n", 8),
     ("max 100000\n", 8), ("", 8), (None, 8)],
)  # fmt: skip
def test_cores_that_a_control_group_grants(
    text: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    if text is not None:
        (tmp_path / "cpu.max").write_text(text)
    assert measure._usable_cores() == cores


def test_weights_that_were_set_are_not_replaced(built: Artifact) -> None:
    layer = built.load()
    if not layer.has_weights:
        layer.set_weights([*sample.weights()])
    x = np.ones((1, sample.DEPTH, sample.HEIGHT, sample.ROW, sample.CHANNELS), np.float32)
    tvmconv.bench(layer, seconds=0.02)
    np.testing.assert_array_equal(layer(x), sample.expected(x))


def test_without_a_limit_on_blas_there_is_no_share(
    built: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "_blas_functions", lambda: (None, None))
    monkeypatch.setattr(measure, "_usable_cores", lambda: 4)
    for name in measure._BLAS_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (first, _) = tvmconv.bench(built, seconds=0.02)
    assert (first.gemm_gflops, first.share) == (None, None)
    assert first.gflops > 0


THREADS = """
import numpy as np
from tvmconv import measure
measure._usable_cores = lambda: 2
setter, getter = measure._blas_functions()
setter(2)
with measure._one_blas_thread() as alone:
    assert alone and getter() == 1
assert getter() == 2
"""


def test_blas_is_held_to_one_thread_and_let_go() -> None:
    environment = {k: v for k, v in os.environ.items() if k not in measure._BLAS_VARIABLES}
    subprocess.run([sys.executable, "-c", THREADS], check=True, timeout=600, env=environment)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_wrong_times(built: Artifact, seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"Expected seconds above 0\. Received: seconds="):
        tvmconv.bench(built, seconds=seconds)


def test_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no artifact"):
        tvmconv.bench(tmp_path)
