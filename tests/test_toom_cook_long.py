"""Toom-Cook tiles of four outputs along an axis: which layers have them, and what they err."""

from __future__ import annotations

import random

import numpy as np
import pytest
from kernels import Kernel, target

from tvmconv import schedules
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.transforms import AxisTiles, tile_outputs
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook


def long_layer(rng: random.Random) -> tuple[LayerConfig, tuple[int, ...], Tiling]:
    """A layer that long tiles are for, and a tiling with them."""
    while True:
        strides = rng.choice(((2, 2, 2), (1, 1, 1), (1, 2, 2), (2, 1, 3)))
        kernel = tuple(rng.choice((s + 1, 2 * s, 2 * s + (s == 1))) for s in strides)
        first = rng.random() < 0.25
        config = LayerConfig(
            rng.randint(1, 40), kernel, strides, rng.choice(("same", "valid")),
            data_format="channels_first" if first else "channels_last",
        )  # fmt: skip
        sizes = tuple(rng.randint(3, 12) for _ in range(3))
        channels = rng.randint(32, 70)
        shape = (1, channels, *sizes) if first else (1, *sizes, channels)
        work = Workload.of(config, shape).joined()
        if toom_cook.refusal(work) is not None or work.plan.flops > 1e8:
            continue
        long = [some for some in tile_outputs(work.plan.axes, channels) if 4 in some]
        if long:
            outputs = rng.choice(long)
            tiles = AxisTiles(work.plan.axes[2], outputs[2], 1, True).tiles
            tiling = Tiling(
                "toom-cook", rng.choice((4, 8, 16)), rng.randint(1, 2), rng.randint(1, 4), 1,
                outputs=(outputs[0], outputs[1], outputs[2]),
                block=(1, rng.randint(1, 2), tiles), shared=rng.randint(0, 3),
            )  # fmt: skip
            return config, shape, tiling


@pytest.mark.parametrize("seed", range(16))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    config, shape, tiling = long_layer(random.Random(seed))
    rng = np.random.default_rng(seed)
    weights = config.weight_shapes(shape[config.channel_axis])
    x, kernel, bias = (rng.standard_normal(some).astype(np.float32) for some in (shape, *weights))
    expected = conv3d_transpose(config, x, kernel, bias)
    plain = schedules.decide(Workload.of(config, shape), target(), columns=False)
    ours, direct = (
        np.max(np.abs(Kernel(config, shape, tiling=one)(x, kernel, bias, numbers) - expected))
        for one, numbers in ((tiling, rng), (plain, None))
    )
    assert ours <= max(2 * direct, 2.0**-22 * np.max(np.abs(expected)))


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


def test_which_layers_have_them() -> None:
    def axes_of(kernel: object, size: int = 16, channels: int = 64) -> set[int]:
        config = LayerConfig(32, kernel, 2, "same")  # type: ignore[arg-type]
        plan = Workload.of(config, (1, 4, size, size, channels)).plan
        found = tile_outputs(plan.axes, channels)
        assert all(some.count(4) <= 1 for some in found)
        return {some.index(4) for some in found if 4 in some}

    assert axes_of(4) == axes_of(3) == {1, 2}  # The depth is too short.
    assert axes_of((4, 5, 4)) == {2}  # Three taps.
    assert axes_of((4, 2, 4)) == axes_of(4, size=7) == axes_of(4, channels=31) == set()


def test_layers_of_many_channels_take_them() -> None:
    for filters, size, shape in ((32, 3, (1, 24, 32, 64, 64)), (64, 4, (1, 16, 16, 16, 128))):
        work = Workload.of(LayerConfig(filters, size, 2, "same"), shape)
        assert 4 in toom_cook.require(work, target("znver5")).outputs
        assert 4 not in toom_cook.require(work, target("znver3")).outputs
