"""Layers compiled for CUDA devices, whole, on the fake driver: run by test_cuda_launcher.py.

In the place of nvcc stands what compiles the same CUDA C for emulated threads; the fake driver runs
that behind cuLaunchKernel.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cuda_samples import needs_gcc, needs_nvcc
from emulated_kernels import emulated_library
from fake_driver import count
from foreign_arrays import Interface, Pack
from golden_files import Case, assert_close, cases
from launcher_sample import FATBIN

import tvmconv
from tvmconv.codegen.cuda import nvcc
from tvmconv.compute.element import round_tf32
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError, InputError
from tvmconv.reference import conv3d_transpose
from tvmconv.runtime.cuda import CudaLayer
from tvmconv.runtime.cuda_arrays import DeviceArray
from tvmconv.runtime.library import CompiledLayer

SOME = (
    "medium_001", "dilation_001", "dtype_002", "dtype_004", "activation_033", "activation_045",
    "special_000", "edge_000", "edge_007", "actlayer_003",
)  # fmt: skip


class Emulator:
    """In the place of nvcc."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0

    def build(self, source: str, targets: Sequence[Any]) -> nvcc.Built:
        assert targets
        symbols = re.findall(r'^extern "C" __global__.* (\w+)\([^()]*\);', source, re.M)
        self.number += 1
        place = self.folder / str(self.number)
        place.mkdir()
        os.environ["FAKE_KERNELS"] = str(emulated_library(source, symbols, place))
        return nvcc.Built(FATBIN, ())


@pytest.fixture(autouse=True)
def emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    kernels = os.environ["FAKE_KERNELS"]
    monkeypatch.setattr(nvcc, "find", lambda: Emulator(tmp_path))
    yield
    os.environ["FAKE_KERNELS"] = kernels


def layer_of(case: Case, **options: Any) -> tvmconv.Conv3DTranspose:
    layer = tvmconv.Conv3DTranspose.from_config(case.config, **options)
    layer.build(case.x.shape)
    layer.set_weights(case.weights)
    return layer


@needs_gcc
@pytest.mark.parametrize("case", [case for case in cases() if case.id in SOME], ids=str)
def test_golden(case: Case, tmp_path: Path) -> None:
    shape = (None, *case.x.shape[1:])
    artifact = tvmconv.compile(
        layer_of(case), shape, target="cuda:sm_80", name="up1", output=tmp_path / "out"
    )
    layer = artifact.load()
    assert isinstance(layer, CudaLayer)
    x = case.x.astype(artifact.manifest.input_dtype)
    assert_close(layer(x), case)
    for kind in (Pack, Interface):
        if 0 in x.shape or x.dtype == ml_dtypes.bfloat16 or (kind is Pack and x.itemsize != 4):
            continue
        y = layer(kind(x))
        assert isinstance(y, DeviceArray)
        assert_close(np.asarray(y), case)
    report = tvmconv.verify(artifact.path)
    assert report.good
    assert "largest error" in report.findings[-1].detail
    assert "serial" in artifact.manifest.check["where"]
    assert count("mistakes") == 0


@needs_gcc
def test_a_library_for_both(tmp_path: Path) -> None:
    case = next(case for case in cases() if case.id == "medium_001")
    artifact = tvmconv.compile(
        layer_of(case), case.x.shape, target="cuda:sm_80,sm_86|native", name="up1",
        output=tmp_path / "out", weights="external",
    )  # fmt: skip
    # The CUDA kernels multiply weights with zeros beyond the borders.
    assert artifact.manifest.weights["nonfinite"] == "tile"
    for device in (0, 1, -1):
        layer = tvmconv.load(artifact.path, device=device)
        layer.set_weights(case.weights)
        launches = count("launches")
        assert_close(layer(case.x), case)
        assert (count("launches") > launches) == (device >= 0)
        assert_close(np.asarray(layer(Pack(case.x))), case)
    assert tvmconv.verify(artifact.path).good


@needs_gcc
def test_the_layer_of_keras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVMCONV_CACHE", str(tmp_path / "cache"))
    case = next(case for case in cases() if case.id == "medium_001")
    layer = layer_of(case, target="cuda:native")
    y = layer(Pack(case.x))
    assert isinstance(y, DeviceArray)
    assert_close(np.asarray(y), case)
    assert_close(layer(case.x), case)
    layer.set_weights([2 * value for value in case.weights])
    np.testing.assert_allclose(np.asarray(layer(Pack(case.x))), 2 * np.asarray(y), rtol=1e-5)
    with pytest.raises(InputError, match="expected axis -1 of input shape to have value 8"):
        layer(Pack(case.x[..., :1].copy()))
    with pytest.raises(InputError, match="min_ndim=5"):
        layer(Pack(case.x[0].copy()))
    with pytest.raises(InputError, match="target='native'"):
        layer_of(case)(Pack(case.x))


@needs_gcc
def test_sums_that_blocks_share(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(32, 4, 2, padding="same", activation="tanh")
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 3, 128)).astype(np.float32)
    layer.build(x.shape)
    made = tvmconv.compile(
        layer, x.shape, target="cuda:sm_80|native", name="up1", output=tmp_path / "out"
    )
    described = made.manifest.target["cuda"]
    blocks = described["decisions"][0]["sum_blocks"]
    assert blocks > 1 and described["workspace_bytes"] == [blocks * 4 * 4 * 6 * 6 * 32]
    assert described["launches"] == [["up1_conv_0", "up1_sums_0"]]
    expected = conv3d_transpose(LayerConfig.from_keras(layer.get_config()), x, *layer.get_weights())
    loaded = made.load()
    assert isinstance(loaded, CudaLayer)
    for _ in range(2):
        np.testing.assert_allclose(loaded(x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.asarray(loaded(Pack(x))), expected, rtol=1e-5, atol=1e-6)
    assert tvmconv.verify(made.path).good
    assert count("mistakes") == 0


def test_tf32(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(32, 2, 2)
    layer.build((1, 3, 3, 3, 32))
    artifact = tvmconv.compile(
        layer, (1, 3, 3, 3, 32), target="cuda:sm_80", precision="tf32", output=tmp_path / "out"
    )
    described, check = artifact.manifest.target["cuda"], artifact.manifest.check
    assert described["precision"] == ["tf32"] and described["decisions"][0]["form"] == "mma"
    assert check["tolerance"] == 2e-3 and 1e-5 < check["max_error"] < 2e-3
    x = np.random.default_rng(0).standard_normal((1, 3, 3, 3, 32)).astype(np.float32)
    kernel, bias = layer.get_weights()
    expected = conv3d_transpose(layer.config, round_tf32(x), round_tf32(kernel), bias)
    np.testing.assert_allclose(artifact.load()(x), expected, rtol=1e-5, atol=1e-5)


@needs_gcc
@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_75|native"])
def test_toom_cook(target: str, tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(6, (3, 4, 3), (1, 2, 2), padding="same", activation="tanh")
    x = np.random.default_rng(0).standard_normal((3, 4, 3, 5, 9)).astype(np.float32)
    layer.build(x.shape)
    made = tvmconv.compile(
        layer, (None, *x.shape[1:]), target=target, algorithm="toom-cook", name="up1",
        output=tmp_path / "out", weights="external",
    )  # fmt: skip
    manifest = made.manifest
    assert (manifest.algorithm, manifest.nonfinite) == ("toom-cook", "tile")
    assert manifest.target["cuda"]["algorithm"] == "toom-cook"
    assert manifest.weights["nonfinite"] == "tile"
    check = manifest.check.get("cuda", manifest.check)
    assert set(check["max_error_float64"]) == {"direct", "toom-cook"}
    assert all(error < 1e-5 for error in check["max_error_float64"].values())
    loaded = made.load()
    loaded.set_weights(layer.get_weights())
    kernel, bias = layer.get_weights()
    config = LayerConfig.from_keras(layer.get_config())
    expected = conv3d_transpose(config, x, kernel, bias)
    for given in (x, x[:0], x[:1]):
        np.testing.assert_allclose(loaded(given), expected[: len(given)], atol=2e-6)
    assert tvmconv.verify(made.path).good
    assert count("mistakes") == 0


def test_toom_cook_is_refused_with_the_reason(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(2, 3, 2)
    layer.build((1, 3, 3, 3, 2))
    with pytest.raises(ConfigError, match="input channels"):
        tvmconv.compile(
            layer, (1, 3, 3, 3, 2), target="cuda:sm_80", algorithm="toom-cook",
            output=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_an_artifact_of_the_cpu_takes_no_device(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(2, 3, 2)
    layer.build((1, 2, 2, 2, 2))
    artifact = tvmconv.compile(layer, (1, 2, 2, 2, 2), output=tmp_path / "out")
    assert type(tvmconv.load(artifact.path, device=-1)) is CompiledLayer
    with pytest.raises(ConfigError, match="CUDA"):
        tvmconv.load(artifact.path, device=0)


@needs_nvcc
def test_what_nvcc_built_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    layer = tvmconv.Conv3DTranspose(2, 3, 2, name="up1")
    layer.build((1, 2, 2, 2, 2))
    options: dict[str, Any] = {"target": "cuda:sm_80,sm_90", "name": "up1"}
    made = [
        tvmconv.compile(layer, (1, 2, 2, 2, 2), output=tmp_path / folder, **options)
        for folder in ("a", "b")
    ]
    first, second = (one.library.read_bytes() for one in made)
    assert first == second
    kernels = made[0].manifest.target["cuda"]["kernels"]
    assert {one["architecture"] for one in kernels} == {"sm_80", "sm_90"}
    assert all(one["registers"] > 0 for one in kernels)
    assert nvcc.contents(first[first.index(FATBIN[:4]) :])
    with pytest.raises(tvmconv.errors.ArtifactError, match="a fake error"):
        made[0].load()(np.zeros((1, 2, 2, 2, 2), np.float32))  # no emulated kernels
