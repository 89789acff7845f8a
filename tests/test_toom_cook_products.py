"""The products of the Toom-Cook form: filters over whole registers, and what last tiles need."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from kernels import Kernel, target

from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import AxisTiles, outputs_of
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.geometry import Axis, output_length
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook


@pytest.mark.parametrize("vector", [4, 8, 16])
@pytest.mark.parametrize("dots", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [16, 27])
def test_last_filters_with_channels_as_lanes(vector: int, dots: int, channels: int) -> None:
    config = LayerConfig(16 + dots, (3, 4, 5), 2, "same", activation="relu")
    shape, rng = (2, 3, 4, 13, channels), np.random.default_rng(dots)
    x, kernel, bias = (
        rng.integers(-3, 4, some).astype(np.float32)
        for some in (shape, config.kernel_shape(channels), (config.filters,))
    )
    work = Workload.of(config, shape)
    tiling = Tiling(
        "toom-cook", vector, 1, 4, 1, outputs=(2, 3, 2), block=(1, 2, 7), shared=1, dots=dots
    )
    # Register tiles of two widths.
    assert cut(ToomCookForm(work, tiling).axes[2].tiles, 4) == [(1, 4), (1, 3)]
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


def test_few_filters_over_a_register_take_channels_as_lanes() -> None:
    for filters, dots in ((33, 1), (67, 3), (32, 0), (31, 0), (40, 0)):
        for machine in ("znver5", "znver3"):
            work = Workload.of(LayerConfig(filters, 3, 1, "same"), (1, 16, 32, 32, 64))
            tiling = toom_cook.decide(work, target(machine))
            assert tiling is not None
            assert tiling.dots == dots
            assert (filters - dots) % tiling.vector == 0 or not dots
    odd = Workload.of(LayerConfig(33, 3, 1, "same"), (1, 16, 32, 32, 63))
    assert toom_cook.require(odd, target("znver5")).dots == 0


@pytest.mark.parametrize("seed", range(40))
def test_products_that_no_output_needs(seed: int) -> None:
    rng = random.Random(seed)
    stride = rng.randint(1, 3)
    kernel, size = rng.randint(stride, 3 * stride), rng.randint(1, 20)
    out, lo = output_length(size, kernel, stride, 1, rng.choice(("same", "valid")), None)
    axis = Axis(size, kernel, stride, 1, lo, out)
    for m in outputs_of(axis):
        tiles = AxisTiles(axis, m, 1, shared=True)
        for group in tiles.classes:
            for place, needing in zip(group.places, tiles.needing(group), strict=True):
                for p, count in enumerate(needing):
                    needed = {
                        t
                        for t, j in itertools.product(range(tiles.tiles), range(m))
                        if t * tiles.span + place + stride * j < out and group.scheme.result[j][p]
                    }
                    assert needed <= set(range(count))
                    assert count == max(tiles.tiles - 1, len(needed))


def test_a_last_tile_of_one_output_makes_fewer_products() -> None:
    seven, eight = (Axis(size, 4, 2, 1, 1, 2 * size) for size in (7, 8))
    for axis, last in ((seven, (4, 4, 3)), (eight, (4, 4, 4))):
        tiles = AxisTiles(axis, 2, 2, shared=True)
        assert [tiles.needing(group) for group in tiles.classes] == [[last, last]]
