"""The phase form in registers of half the length: where a processor gains by them."""

from __future__ import annotations

import numpy as np
import pytest
from kernels import Kernel, target

from tvmconv import schedules
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import phase


def chosen(filters: int, channels: int, name: str = "znver4", **more: bool) -> Tiling:
    """The default direct tiling of a layer with one tap an output."""
    work = Workload.of(LayerConfig(filters, 1), (1, 9, 10, 11, channels))
    return schedules.decide(work, target(name), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("filters", "channels", "lanes"),
    [
        # By measurement on Zen 4, in turns: 1.3, 1.2 and 1.1 times as fast as whole registers.
        (20, 186, 8), (24, 48, 8), (34, 136, 8), (56, 184, 8),
        # No lane is saved, or beside the ends of more registers too few steps are.
        (32, 186, 16), (27, 186, 16), (20, 4, 16), (50, 8, 16), (210, 300, 16),
    ],
)  # fmt: skip
def test_halves_where_they_leave_fewer_lanes_empty(filters: int, channels: int, lanes: int) -> None:
    tiling = chosen(filters, channels)
    assert (tiling.form, tiling.vector) == ("phase", lanes)
    assert tiling.registers * tiling.width + tiling.registers + 1 <= 32


@pytest.mark.parametrize("name", ["haswell", "sapphirerapids", "znver3", "znver5"])
def test_only_where_products_of_whole_registers_take_twice_as_long(name: str) -> None:
    assert chosen(20, 186, name).vector == target(name).vector_bits // 32


def test_weights_that_processors_share_keep_whole_registers() -> None:
    assert chosen(20, 186, columns=False).vector == 16


def test_weights_that_wait_for_memory_keep_whole_registers() -> None:
    work = Workload.of(LayerConfig(520, 4, 2, "same"), (1, 3, 3, 3, 600))
    tiling = schedules.decide(work, target("znver4"))
    assert tiling.stationary and tiling.vector == 16


def test_other_forms_are_compared_with_whole_registers() -> None:
    work = Workload.of(LayerConfig(20, 1), (1, 9, 10, 11, 186))
    found = phase.decide(work, target("znver4"))
    assert found is not None and found.vector == 16


@pytest.mark.parametrize("filters", [17, 20, 24, 37])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_it_computes_the_layer(filters: int, data_format: str) -> None:
    config = LayerConfig(
        filters, (3, 2, 1), (2, 3, 1), "same", data_format=data_format, activation="relu"
    )
    shape = (1, 3, 5, 7, 40) if data_format == "channels_last" else (1, 40, 3, 5, 7)
    tiling = schedules.decide(Workload.of(config, shape), target("znver4"))
    assert tiling.vector == 8
    rng = np.random.default_rng(filters)
    weights = config.weight_shapes(shape[config.channel_axis])
    x, kernel, bias = (rng.integers(-9, 9, some).astype(np.float32) for some in (shape, *weights))
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y, conv3d_transpose(config, x, kernel, bias))
