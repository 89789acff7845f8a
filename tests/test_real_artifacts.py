"""Compiled layers of every form as C programs meet them: guard pages, threads, fork, valgrind."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import c_driver
import numpy as np
import pytest
from test_linking import check_symbols
from test_sanitizers import check_with_valgrind
from turns import few

import tvmconv
from tvmconv.artifact import Artifact
from tvmconv.policies import numpy_dtype


@dataclass(frozen=True)
class Sample:
    """A small layer that takes one way through the compiler."""

    form: str
    shape: tuple[int | None, ...]
    arguments: dict[str, object]


SAMPLES = {
    "phase": Sample(
        "phase", (1, 3, 4, 7, 5), {"filters": 37, "kernel_size": 3, "strides": 2, "padding": "same"}
    ),
    "folded": Sample("phase", (2, 3, 4, 5, 19), {"filters": 24, "kernel_size": 2, "strides": 2}),
    "first": Sample(
        "phase",
        (1, 7, 3, 4, 18),
        {
            "filters": 21,
            "kernel_size": 3,
            "padding": "same",
            "data_format": "channels_first",
            "activation": "gelu",
        },
    ),
    "half": Sample(
        "phase",
        (None, 2, 3, 9, 8),
        {"filters": 18, "kernel_size": 4, "strides": 2, "dtype": "float16"},
    ),
    "voxel": Sample(
        "voxel",
        (1, 3, 4, 37, 9),
        {"filters": 1, "kernel_size": 5, "strides": 2, "activation": "sigmoid"},
    ),
    "columns": Sample(
        "columns",
        (1, 3, 4, 21, 62),
        {"filters": 1, "kernel_size": 4, "strides": 2, "activation": "sigmoid"},
    ),
    "dots": Sample(
        "dots",
        (1, 3, 5, 7, 64),
        {"filters": 1, "kernel_size": 4, "strides": 2, "activation": "sigmoid"},
    ),
    "softmax": Sample(
        "phase",
        (1, 2, 3, 6, 8),
        {"filters": 5, "kernel_size": 3, "strides": 2, "activation": "softmax"},
    ),
    "definition": Sample(
        "definition",
        (1, 2, 3, 4, 6),
        {"filters": 10, "kernel_size": 3, "strides": (1, 1, 9), "dtype": "float64"},
    ),
}


@functools.cache
def _layer(name: str) -> tvmconv.Conv3DTranspose:
    """The layer of a sample, whose weights are drawn once."""
    layer = tvmconv.Conv3DTranspose(**SAMPLES[name].arguments, name=name)  # type: ignore[arg-type]
    layer.build(SAMPLES[name].shape)
    return layer


def _compile(name: str, folder: Path) -> Artifact:
    return tvmconv.compile(_layer(name), SAMPLES[name].shape, output=folder, name=name)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return {name: _compile(name, tmp_path_factory.mktemp(name)) for name in SAMPLES}


@pytest.fixture(scope="module")
def drivers(
    artifacts: dict[str, Artifact], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drivers")
    return {name: c_driver.driver(artifact, folder) for name, artifact in artifacts.items()}


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_take_every_form(artifacts: dict[str, Artifact], name: str) -> None:
    assert artifacts[name].manifest.schedule["form"] == SAMPLES[name].form


@pytest.mark.parametrize("name", SAMPLES)
def test_symbols_and_needs(artifacts: dict[str, Artifact], name: str) -> None:
    check_symbols(artifacts[name])


@pytest.mark.parametrize("mode", ["guard", "state", "fork", "nest"])
@pytest.mark.parametrize("name", SAMPLES)
def test_guard_pages_state_fork_and_nesting(drivers: dict[str, Path], name: str, mode: str) -> None:
    assert "good" in c_driver.run(drivers[name], mode, 1, 4)


@pytest.mark.parametrize("name", ["phase", "voxel"])
def test_eight_threads_call_at_once(drivers: dict[str, Path], name: str) -> None:
    assert "good" in c_driver.run(drivers[name], "storm", 3, 8)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SAMPLES)
def test_eight_threads_call_for_a_minute(drivers: dict[str, Path], name: str) -> None:
    assert "good" in c_driver.run(drivers[name], "storm", 60, 8)


@pytest.mark.parametrize("name", ["phase", "voxel", "columns"])
def test_valgrind(tmp_path: Path, name: str) -> None:
    # valgrind knows no AVX-512.
    sample = SAMPLES[name]
    layer = tvmconv.Conv3DTranspose(**sample.arguments, name=name)  # type: ignore[arg-type]
    artifact = tvmconv.compile(
        layer, sample.shape, output=tmp_path / "out", name=name, target="x86-64-v3"
    )
    check_with_valgrind(artifact, tmp_path, "guard", 1, 2)


@pytest.mark.parametrize("name", few(SAMPLES, (1, 2, 5, 8)))
def test_two_builds_are_the_same_bytes(
    artifacts: dict[str, Artifact], tmp_path: Path, name: str
) -> None:
    again = _compile(name, tmp_path / "a" / "longer" / "path")
    files = [
        {file.name: file.read_bytes() for file in one.path.iterdir()}
        for one in (artifacts[name], again)
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("name", SAMPLES)
def test_the_code_is_small(artifacts: dict[str, Artifact], name: str) -> None:
    artifact = artifacts[name]
    weights = artifact.manifest.weights["packed_bytes"]
    assert artifact.library.stat().st_size - weights < 150_000


@pytest.mark.parametrize("name", SAMPLES)
def test_numpy_alone_runs_it_with_the_same_bits_on_any_threads(
    artifacts: dict[str, Artifact], tmp_path: Path, name: str
) -> None:
    artifact = artifacts[name]
    shape = [size or 3 for size in artifact.manifest.input_shapes[0]]
    rng = np.random.default_rng(5)
    x = rng.standard_normal(shape).astype(numpy_dtype(artifact.manifest.input_dtype))
    np.save(tmp_path / "x.npy", x)
    program = """
import json, sys, numpy as np, tvmconv
x = np.load(sys.argv[2])
outputs = [tvmconv.load(sys.argv[1], threads=t)(x) for t in (1, 2, 5, 0)]
heavy = sorted({"tvm", "tvm_ffi", "keras", "h5py", "xgboost"} & set(sys.modules))
print(json.dumps([heavy, all((y == outputs[0]).all() for y in outputs), list(outputs[0].shape)]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, artifact.path, tmp_path / "x.npy"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    heavy, equal, out = json.loads(result.stdout)
    expected = [size or 3 for size in artifact.manifest.output_shapes[0]]
    assert (heavy, equal, out) == ([], True, expected)
