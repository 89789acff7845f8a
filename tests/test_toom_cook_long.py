"""Long Toom-Cook tiles, of five products or more along an axis: who has them, what they err."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from cook_layers import FLOOR, cook_layers, errors
from kernels import Kernel, target
from turns import few

from tvmconv.compute.schemes import SCHEMES
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.transforms import AxisTiles, outputs_of, tile_outputs
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook


def long_tiles(work: Workload) -> list[tuple[int, int, int]]:
    """Those of a workload's tiles that are long along some axis."""
    axes = work.plan.axes
    short = set(itertools.product(*map(outputs_of, axes)))
    return [
        some
        for some in tile_outputs(axes, work.plan.in_channels, work.plan.filters)
        if some not in short
    ]


def long_layer(rng: random.Random) -> tuple[LayerConfig, tuple[int, ...], Tiling]:
    """A layer that long tiles are for, and a tiling with them."""
    for config, shape, work in cook_layers(rng, 12, (32, 70), 1e8):
        if long := long_tiles(work):
            outputs = rng.choice(long)
            tiles = AxisTiles(work.plan.axes[2], outputs[2], 1, True).tiles
            tiling = Tiling(
                "toom-cook", rng.choice((4, 8, 16)), rng.randint(1, 2), rng.randint(1, 4), 1,
                outputs=outputs,
                block=(1, rng.randint(1, 2), tiles), shared=rng.randint(0, 3),
            )  # fmt: skip
            return config, shape, tiling
    raise AssertionError("the layers have no end")


@pytest.mark.parametrize("seed", few(range(16), (0, 1, 3)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    ours, direct = errors(*long_layer(random.Random(seed)), seed)
    assert ours <= max(2 * direct, FLOOR)


@pytest.mark.parametrize("policy", ["mixed_float16", "bfloat16"])
def test_half_floats(policy: str) -> None:
    config, shape = LayerConfig(20, 4, 2, "same", dtype=policy, activation="relu"), (2, 3, 5, 9, 33)
    rng = np.random.default_rng(3)
    kernel, bias = (
        rng.standard_normal(some).astype(numpy_dtype(config.variable_dtype))
        for some in config.weight_shapes(33)
    )
    x = rng.standard_normal(shape).astype(numpy_dtype(config.compute_dtype))
    tiling = Tiling("toom-cook", 16, 1, 3, 1, outputs=(2, 2, 4), block=(1, 2, 3), shared=1)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng).astype(np.float64)
    rounded = kernel.astype(numpy_dtype(config.compute_dtype)).astype(np.float64)
    expected = conv3d_transpose(config, x, rounded, bias)
    unit = 2.0**-10 if "bfloat" not in policy else 2.0**-7
    assert np.max(np.abs(y - expected)) <= unit * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("activation", "policy", "data_format"),
    [
        ("gelu", "float32", "channels_last"),
        ("softmax", "float32", "channels_last"),
        ("relu", "float32", "channels_first"),
        ("relu", "bfloat16", "channels_last"),
    ],
)
def test_large_planes_are_transformed_back_by_loops(
    activation: str, policy: str, data_format: str
) -> None:
    config = LayerConfig(
        20, (3, 5, 5), (1, 2, 2), "same",
        dtype=policy, activation=activation, data_format=data_format,
    )  # fmt: skip
    shape = (2, 5, 8, 9, 33) if data_format == "channels_last" else (2, 33, 5, 8, 9)
    rng = np.random.default_rng(4)
    kernel, bias = (
        (rng.standard_normal(some) / 16).astype(numpy_dtype(config.variable_dtype))
        for some in config.weight_shapes(33)
    )
    x = rng.standard_normal(shape).astype(numpy_dtype(config.compute_dtype))
    tiling = Tiling("toom-cook", 16, 1, 3, 1, outputs=(2, 4, 4), block=(2, 1, 3), shared=2)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng).astype(np.float64)
    expected = conv3d_transpose(config, x, kernel.astype(np.float64), bias)
    unit = 1e-5 if policy == "float32" else 2.0**-7
    assert np.max(np.abs(y - expected)) <= unit * np.max(np.abs(expected))


def test_which_layers_have_them() -> None:
    def tiles_of(
        kernel: object, size: int = 16, channels: int = 64, filters: int = 32
    ) -> set[tuple[int, ...]]:
        config = LayerConfig(filters, kernel, 2, "same")  # type: ignore[arg-type]
        return {*long_tiles(Workload.of(config, (1, 4, size, size, channels)))}

    # The depth is too short.
    two_taps = {(m, *some) for m in (2, 3) for n in (2, 3) for some in ((4, n), (n, 4))}
    assert tiles_of(4) == tiles_of(3) == two_taps
    assert tiles_of((4, 2, 4)) == tiles_of(4, size=7) == tiles_of(4, channels=31) == set()
    # Sums of three taps leave more room, two long schemes for each other.
    pairs = {(a, b) for a in (2, 3, 4) for b in (2, 3, 4) if (a, b) != (2, 2)}
    assert tiles_of(5) == {(2, *pair) for pair in pairs}
    assert tiles_of(5, filters=15) == {(2, *pair) for pair in pairs - {(4, 4)}}
    assert tiles_of(5, channels=31) == {(2, 2, 3), (2, 3, 2), (2, 3, 3), (2, 2, 4), (2, 4, 2)}
    assert tiles_of((5, 2, 5), size=6) == {(2, 1, 3)}


def test_noise_of_the_schemes() -> None:
    """Squares of errors by hand for F(2,3); no scheme errs over twice what the plain sum does."""
    assert SCHEMES[2, 3].noise ** 2 == pytest.approx(2 * 1 + 2 * 3 / 4 + 2 * 3 / 4)
    assert SCHEMES[1, 3].noise ** 2 == pytest.approx(3)
    assert all(scheme.noise <= 2 * scheme.taps for scheme in SCHEMES.values())
    assert SCHEMES[4, 3].noise > SCHEMES[3, 3].noise > SCHEMES[2, 3].noise


def test_layers_of_many_channels_take_them() -> None:
    for filters, size, shape in ((32, 3, (1, 24, 32, 64, 64)), (64, 4, (1, 16, 16, 16, 128))):
        work = Workload.of(LayerConfig(filters, size, 2, "same"), shape)
        assert 4 in toom_cook.require(work, target("znver5")).outputs
        assert 4 not in toom_cook.require(work, target("znver3")).outputs


@pytest.mark.parametrize(
    ("size", "stride", "shape"), [(3, 1, (1, 16, 32, 32, 32)), (5, 2, (1, 16, 16, 16, 32))]
)
def test_layers_of_three_taps_take_them(size: int, stride: int, shape: tuple[int, ...]) -> None:
    work = Workload.of(LayerConfig(32, size, stride, "same"), shape)
    for machine, taken in (("znver5", True), ("znver4", True), ("znver3", False)):
        tiling = toom_cook.decide(work, target(machine))
        assert tiling is not None
        assert (tiling.outputs in long_tiles(work)) == taken
