"""Calling what the compiler made: dtypes, layouts, several shapes, threads, weights."""

from __future__ import annotations

import ctypes
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import sample_library as sample

import tvmconv
from tvmconv.reference import conv3d_transpose
from tvmconv.runtime.library import load

POLICIES = {
    "float64": (np.float64, np.float64, 1e-12),
    "mixed_bfloat16": (np.float32, ml_dtypes.bfloat16, 2e-2),
    "float16": (np.float16, np.float16, 4e-3),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_dtypes(policy: str, tmp_path: Path) -> None:
    variable, compute, tolerance = POLICIES[policy]
    layer = tvmconv.Conv3DTranspose(3, 2, 2, name="up", dtype=policy)
    layer.build((None, 2, 3, 2, 5))
    made = tvmconv.compile(layer, (None, 2, 3, 2, 5), output=tmp_path, weights="external")
    x = np.random.default_rng(2).normal(size=(2, 2, 3, 2, 5)).astype(np.float32)
    compiled = made.load()
    compiled.set_weights(layer.get_weights())
    y = compiled(x)
    assert (y.dtype, y.shape) == (np.dtype(compute), (2, 4, 6, 4, 3))
    kernel, bias = layer.get_weights()
    assert kernel.dtype == variable
    expected = conv3d_transpose(layer.config, x.astype(compute), kernel, bias)
    np.testing.assert_allclose(y.astype(np.float64), expected, rtol=tolerance, atol=tolerance)


def test_variables_are_aligned_to_their_element_only(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(3, 2, 2, name="up", dtype="float16")
    layer.build((1, 2, 3, 2, 5))
    made = tvmconv.compile(layer, (1, 2, 3, 2, 5), output=tmp_path, weights="external")
    library = sample.Library(made.path, "up")
    packed = []
    for offset in (0, 2):
        moved = []
        for value in layer.get_weights():
            memory = np.empty(value.nbytes + 16, np.uint8)
            start = -memory.ctypes.data % 8 + offset
            moved.append(memory[start : start + value.nbytes].view(value.dtype))
            moved[-1][...] = value.ravel()
        blob = np.zeros(library["packed_weights_size"]() // 8 + 1)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*moved, blob)]
        assert library["pack_weights"](*pointers) == 0
        packed.append(blob.tobytes())
    assert packed[0] == packed[1]
    assert any(packed[0])


@pytest.mark.skipif(sample.TRIPLE.split("-")[0] != "x86_64", reason="builds for CPUs of x86-64")
def test_the_target_that_was_asked_for_is_the_one_built(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(16, 2, 2, name="up")
    layer.build((1, 4, 4, 8, 16))
    made = tvmconv.compile(
        layer, (1, 4, 4, 8, 16), target="x86-64-v2", output=tmp_path / "v2",
        debug_dump=tmp_path / "stages",
    )  # fmt: skip
    assert made.manifest.target["cpu"] == "x86-64-v2"
    (assembly,) = (tmp_path / "stages").glob("*.s")
    text = assembly.read_text(encoding="utf-8")
    assert "%xmm0" in text
    assert "%ymm" not in text
    assert "%zmm" not in text
    x = random_like((1, 4, 4, 8, 16))
    kernel, bias = layer.get_weights()
    expected = conv3d_transpose(layer.config, x, kernel, bias)
    np.testing.assert_allclose(made.load()(x), expected, rtol=1e-4, atol=2e-5)


def random_like(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(6).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_several_shapes_and_open_batches(data_format: str, tmp_path: Path) -> None:
    first = data_format == "channels_first"
    shapes = [(None, 3, 4, 2, 6), (2, 3, 4, 2, 6), (1, 2, 2, 5, 6), (None, 1, 3, 3, 6)]
    if first:
        shapes = [(n, c, d, h, w) for n, d, h, w, c in shapes]
    layer = tvmconv.Conv3DTranspose(
        7, 3, 2, "same", data_format, activation="relu", name="up", bias_initializer="random_normal"
    )
    layer.build(shapes[0])
    made = tvmconv.compile(layer, shapes, output=tmp_path)
    kernel, bias = layer.get_weights()
    found = {threads: load(made.path, threads=threads) for threads in (1, 2, 5)}
    assert found[1].input_shapes == tuple(shapes)
    for shape, output_shape in zip(shapes, found[1].output_shapes, strict=True):
        for batch in (0, 1, 2, 5) if shape[0] is None else (shape[0],):
            x = random_like((batch, *(size or 0 for size in shape[1:])))
            y = found[1](x)
            assert y.shape == (batch, *output_shape[1:])
            expected = conv3d_transpose(layer.config, x, kernel, bias)
            np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)
            for threads in (2, 5):
                assert found[threads](x).tobytes() == y.tobytes()
