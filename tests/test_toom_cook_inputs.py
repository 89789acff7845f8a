"""Copies of inputs: rows that two blocks of Toom-Cook read are moved, narrow ones are widened."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from kernels import Kernel
from turns import few, turns

from tvmconv.compute.input_rows import runs
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose


@pytest.mark.parametrize(
    ("kernel", "stride", "outputs", "block", "paired"),
    [
        *turns(
            (
                (3, 1, (2, 4, 4), (2, 1, 3)),
                (3, 1, (2, 2, 2), (1, 2, 6)),
                ((2, 4, 4), (1, 2, 2), (2, 3, 2), (2, 1, 6)),
                ((3, 5, 5), (1, 2, 2), (2, 2, 2), (1, 3, 6)),
            ),
            (True, False),
        ),
        # Eight phases are much code.
        *few(((4, 2, (2, 3, 2), (2, 1, 6), True), (5, 2, (2, 2, 2), (1, 3, 6), False)), ()),
    ],
)
def test_rows_of_the_block_before_are_moved(
    kernel: int | tuple[int, int, int],
    stride: int | tuple[int, int, int],
    outputs: tuple[int, int, int],
    block: tuple[int, int, int],
    paired: bool,
) -> None:
    """Calls that begin anywhere give the bits of blocks that copy all of their rows."""
    config = LayerConfig(24, kernel, stride, "same", data_format="channels_first")
    shape, rng = (2, 27, 5, 13, 12), np.random.default_rng(kernel)
    x, taps, bias = (
        rng.standard_normal(some).astype(np.float32) for some in (shape, *config.weight_shapes(27))
    )
    tiling = Tiling(
        "toom-cook", 16, 1, 8 if paired else 3, 1, outputs=outputs, block=block, shared=2,
        paired=paired, stretch=8,
    )  # fmt: skip
    plain = Kernel(config, shape, tiling=tiling)
    moving = Kernel(config, shape, tiling=dataclasses.replace(tiling, compact=True))
    packed = moving.packed(taps, bias)
    expected = plain.run(x, packed)
    np.testing.assert_array_equal(moving.run(x, packed), expected)
    count = moving.tiles(2)
    cuts = [0, *sorted(rng.choice(np.arange(1, count), min(3, count - 1), replace=False)), count]
    ranges = [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(moving.run(x, packed, ranges[::-1]), expected)


@pytest.mark.parametrize("form", ["phase", "toom-cook"])
@pytest.mark.parametrize(
    ("dtype", "channels", "copied"),
    [("float16", 7, [(0, 4), (3, 4)]), ("bfloat16", 5, [(0, 4), (1, 4)])],
)
def test_narrow_channels_that_fill_no_registers_are_widened_by_whole_ones(
    form: str, dtype: str, channels: int, copied: list[tuple[int, int]]
) -> None:
    config, shape = LayerConfig(6, 3, padding="same", dtype=dtype), (2, 3, 4, 5, channels)
    tiling = Tiling(form, 4, 1, 2, 2, outputs=(1, 1, 2), block=(2, 2, 2))
    rng = np.random.default_rng(channels)
    x, kernel, bias = (
        rng.integers(-2, 3, some).astype(np.float64)
        for some in (shape, *config.weight_shapes(channels))
    )
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y.astype(np.float64), conv3d_transpose(config, x, kernel, bias))
    assert runs(Workload.of(config, shape), 4) == copied
    assert runs(Workload.of(config, (*shape[:4], 8)), 4) == [(0, 8)]
    assert runs(Workload.of(config, (*shape[:4], 3)), 4) == [(0, 3)]
    assert runs(Workload.of(LayerConfig(6, 3), shape), 4) == [(0, channels)]
