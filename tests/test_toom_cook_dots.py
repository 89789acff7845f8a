"""The Toom-Cook form's last filters, whose lanes are input channels."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import Kernel, target

from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
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
