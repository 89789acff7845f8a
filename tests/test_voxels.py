"""The voxel form: borders, holes, dilation, parts of the channels, dtypes, layouts, its rule."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, whole_numbers
from turns import turns

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.voxels import VoxelForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import column, dot, voxel
from tvmconv.schedules.cpu.pace import products_a_cycle

SAME = {"padding": "same"}
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "even taps": ({"filters": 1, "kernel_size": 4, "strides": 2, **SAME}, (2, 3, 4, 9, 8)),
    "odd taps": ({"filters": 2, "kernel_size": 3, "strides": 2, **SAME}, (1, 3, 2, 17, 5)),
    "stride 1": ({"filters": 3, "kernel_size": (2, 3, 5)}, (1, 3, 2, 12, 4)),
    "stride 3": ({"filters": 2, "kernel_size": (4, 4, 5), "strides": 3, **SAME}, (1, 3, 4, 13, 3)),
    "dilated": ({"filters": 2, "kernel_size": 3, "dilation_rate": (2, 3, 4)}, (1, 5, 4, 14, 6)),
    "dilated by a task's planes": (
        {"filters": 2, "kernel_size": (3, 1, 5), "dilation_rate": (2, 1, 1), **SAME},
        (1, 6, 7, 5, 4),
    ),
    "cropped": ({"filters": 1, "kernel_size": 6, "strides": 2, **SAME}, (1, 5, 3, 16, 7)),
    "holes": ({"filters": 2, "kernel_size": (1, 2, 1), "strides": (2, 3, 3)}, (1, 2, 3, 9, 4)),
    "holes across": ({"filters": 1, "kernel_size": (3, 3, 1), "strides": 2}, (1, 2, 3, 21, 4)),
    "behind the last tap": (
        {"filters": 1, "kernel_size": 3, "strides": 3, "output_padding": 2}, (1, 3, 2, 8, 4),
    ),
    "more taps than voxels": ({"filters": 1, "kernel_size": 5, **SAME}, (1, 1, 2, 2, 4)),
    "half": ({"filters": 1, "kernel_size": 4, "strides": 2, "dtype": "float16"}, (1, 3, 3, 11, 8)),
    "brain": ({"filters": 3, "kernel_size": 3, "dtype": "mixed_bfloat16"}, (1, 3, 5, 7, 8)),
    "double": ({"filters": 1, "kernel_size": 3, "strides": 3, "dtype": "float64"}, (1, 3, 3, 5, 9)),
    "no bias": ({"filters": 5, "kernel_size": 3, "use_bias": False}, (2, 1, 1, 9, 4)),
    "whole registers": ({"filters": 4, "kernel_size": 2, "strides": 2}, (1, 2, 3, 8, 4)),
    "long activation": (
        {"filters": 3, "kernel_size": 3, "strides": 2, "activation": "tanh"}, (1, 2, 3, 11, 6),
    ),
}  # fmt: skip
#: Sums of a pass, registers of voxels, channels packed at once, rows, planes.
TILES = ((99, 1, 0, 2, 1), (3, 3, 4, 1, 3), (1, 2, 3, 9, 2))


@pytest.mark.parametrize(
    ("name", "first", "registers", "width", "stretch", "rows", "planes"),
    turns(tuple(LAYERS), (False, True), TILES),
)
def test_it_computes_the_layer(
    name: str, first: bool, registers: int, width: int, stretch: int, rows: int, planes: int
) -> None:
    arguments, shape = LAYERS[name]
    if first:
        arguments = {**arguments, "data_format": "channels_first"}
        shape = (shape[0], shape[4], *shape[1:4])
    config = LayerConfig(**{"activation": "relu", **arguments})
    rng = np.random.default_rng(3)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    tiling = Tiling("voxel", 4, registers, width, rows, planes=planes, stretch=stretch)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng).astype(np.float64)
    if name == "long activation":
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
def test_registers_of_every_length_are_transposed_and_interleaved(lanes: int, dtype: str) -> None:
    # One, three and six outputs side by side; rows that end within a register and with it.
    for filters, stride, voxels, channels in ((1, 1, 32, 17), (3, 1, 33, 16), (3, 2, 40, 35)):
        config = LayerConfig(filters, 3, strides=(1, 1, stride), padding="same", dtype=dtype)
        shape = (1, 2, 2, voxels, channels)
        rng = np.random.default_rng(5)
        x, kernel, bias = whole_numbers(config, shape, rng)
        expected = conv3d_transpose(config, x, kernel, bias)
        y = Kernel(config, shape, tiling=Tiling("voxel", lanes, 4, 2, 2))(x, kernel, bias)
        np.testing.assert_array_equal(y, expected)


#: Rows whose groups of registers are packed among products: reached on the left, the right, on both
#: sides; an input that ends in the middle of a group, and a last group of less than a register.
WIDE: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "left": ({"filters": 1, "kernel_size": 3, "strides": 2, **SAME}, (1, 3, 4, 64, 8)),
    "both": ({"filters": 1, "kernel_size": 5, "strides": 2, **SAME}, (2, 2, 3, 32, 16)),
    "two filters": ({"filters": 2, "kernel_size": 3, "strides": (1, 2, 2)}, (1, 4, 3, 40, 24)),
    "in a group": ({"filters": 1, "kernel_size": 3, "strides": 2, **SAME}, (1, 3, 3, 53, 12)),
    "stride 1": ({"filters": 1, "kernel_size": 3, **SAME}, (1, 3, 3, 33, 8)),
    "behind the row": ({"filters": 1, "kernel_size": 4, "strides": 2}, (1, 2, 3, 32, 4)),
    "dilated": ({"filters": 1, "kernel_size": 2, "dilation_rate": 3, **SAME}, (1, 5, 4, 48, 8)),
    "depth": ({"filters": 1, "kernel_size": (4, 1, 2), "strides": (2, 1, 2)}, (1, 3, 2, 36, 8)),
    "half": ({"filters": 1, "kernel_size": 3, "strides": 2, "dtype": "float16"}, (1, 2, 3, 40, 8)),
    "double": ({"filters": 1, "kernel_size": 3, "dtype": "float64", **SAME}, (1, 2, 3, 34, 6)),
    "other channels": ({"filters": 1, "kernel_size": 3, "strides": 2, **SAME}, (1, 2, 3, 40, 7)),
}  # fmt: skip


@pytest.mark.parametrize("name", WIDE)
def test_groups_are_packed_among_the_products_of_those_before(name: str) -> None:
    arguments, shape = WIDE[name]
    config = LayerConfig(**arguments)
    rng = np.random.default_rng(11)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    # Registers of voxels and channels that divide the row and that do not; tasks of one plane, for
    # whose first rows no product is left that could pack.
    lanes = 8 if config.dtype == "float64" else 16
    for registers, width, stretch, rows, planes in (
        (9, 1, 0, 2, 1), (4, 2, 4, 9, 9), (99, 1, 4, 1, 2), (6, 3, 0, 2, 2),
    ):  # fmt: skip
        tiling = Tiling("voxel", lanes, registers, width, rows, planes=planes, stretch=stretch)
        form = VoxelForm(Workload.of(config, shape), tiling)
        odd = shape[-1] % (2 if lanes == 8 else 4) or name == "half" or not form.blocks
        assert form.by_groups == (width < form.vectors and not odd)
        # Registers that are shorter, and perhaps few, have whole rows.
        short = dataclasses.replace(tiling, vector=lanes // 2)
        assert not VoxelForm(form.work, short).by_groups
        y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng).astype(np.float64)
        np.testing.assert_array_equal(y, expected)


def test_an_infinity_beside_a_group_stays_where_its_taps_reach() -> None:
    # The last voxel of one row, behind which the next one begins in memory.
    config = LayerConfig(1, 3, strides=2, padding="same")
    shape = (1, 2, 3, 40, 8)
    rng = np.random.default_rng(13)
    x, kernel, bias = whole_numbers(config, shape, rng)
    x[0, 0, 1, 39] = np.inf
    x[0, 1, 0, 0] = np.nan
    expected = conv3d_transpose(config, x, kernel, bias)
    for width in (1, 2):
        built = Kernel(config, shape, tiling=Tiling("voxel", 16, 6, width, 2, planes=1))
        np.testing.assert_array_equal(built(x, kernel, bias, rng), expected)


def test_sums_of_other_tasks_reach_no_output() -> None:
    # Each task makes one row of one plane, in scratch that holds NaN.
    config = LayerConfig(2, 5, strides=2, padding="same")
    shape = (2, 3, 4, 9, 3)
    rng = np.random.default_rng(7)
    x = rng.integers(-2, 3, shape).astype(np.float64)
    kernel = rng.integers(-2, 3, config.kernel_shape(3)).astype(np.float64)
    bias = np.array([1.0, -2.0])
    built = Kernel(config, shape, tiling=Tiling("voxel", 4, 7, 2, 1))
    expected = conv3d_transpose(config, x, kernel, bias)
    np.testing.assert_array_equal(built(x, kernel, bias, rng), expected)


def test_each_product_stands_in_one_pass() -> None:
    for arguments in (
        {"filters": 2, "kernel_size": (5, 4, 3), "strides": (2, 3, 1)},
        {"filters": 1, "kernel_size": (1, 2, 3), "strides": (2, 3, 4)},
    ):
        work = Workload.of(LayerConfig(**arguments), (1, 3, 4, 9, 5))
        for registers in (1, 4, 99):
            form = VoxelForm(work, Tiling("voxel", 4, registers, 2, 2))
            places = [
                form.kernel_index(one, a, product)
                for one, a, _ in form.stretches()
                for product in one.products
            ]
            assert len(places) == len(set(places)) == math.prod(work.plan.kernel_shape[:4])
            assert all(len(one.sums) <= registers for one in form.passes)


def test_packed_channels_stay_in_the_first_level_cache() -> None:
    machine = target("x86-64-v4")
    for layout in ("channels_last", "channels_first"):
        config = LayerConfig(1, 3, strides=2, padding="same", data_format=layout)
        shape = (1, 8, 16, 96, 240) if layout == "channels_last" else (1, 240, 8, 16, 96)
        work = Workload.of(config, shape)
        tiling = voxel.decide(work, machine, always=True)
        assert tiling is not None
        form = VoxelForm(work, tiling)
        assert 4 * math.prod(form.packed_shape) <= machine.l1_bytes / 2
        assert 4 * form.scratch_size <= machine.l2_bytes / 2
        # Larger than the second-level cache or not, a large input is asked for ahead.
        assert "T.prefetch(" in lower(work, tiling).kernel.script()


@pytest.mark.parametrize(
    ("strides", "width", "planes", "rows", "stretch"),
    turns(
        (((2, 2, 2), 37), ((1, 2, 1), 16), ((1, 1, 3), 9)),
        ((1, 2), (2, 3), (9, 9)),
        (0, 8),
    ),
)
def test_channels_first_rows_are_packed_among_products(
    strides: tuple[int, int, int], width: int, planes: int, rows: int, stretch: int
) -> None:
    """Also where a row's last pass has no output in a task, or nothing follows."""
    config = LayerConfig(2, (4, 3, 3), strides, "same", data_format="channels_first")
    shape, rng = (2, 16, 4, 5, width), np.random.default_rng(width)
    x, kernel, bias = whole_numbers(config, shape, rng)
    tiling = Tiling("voxel", 16, 8, 1, rows, planes=planes, stretch=stretch)
    assert VoxelForm(Workload.of(config, shape), tiling).by_rows
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


@pytest.mark.parametrize(
    ("strides", "width", "planes", "rows", "stretch"),
    turns(
        (((2, 2, 2), 37), ((1, 2, 1), 16), ((1, 1, 3), 9)),
        ((1, 2), (2, 9), (9, 9)),
        (0, 16),
    ),
)
def test_channels_first_rows_are_packed_together(
    strides: tuple[int, int, int], width: int, planes: int, rows: int, stretch: int
) -> None:
    """Also where a task has fewer rows than that, and where later ones are asked for."""
    config = LayerConfig(2, (4, 3, 3), strides, "same", data_format="channels_first")
    shape, rng = (2, 24, 4, 70, width), np.random.default_rng(width)
    x, kernel, bias = whole_numbers(config, shape, rng)
    tiling = Tiling("voxel", 8, 6, 2, rows, planes=planes, stretch=stretch, block=(1, 4, 1))
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


def test_short_rows_are_packed_together_on_zen_3() -> None:
    config = LayerConfig(1, 4, 2, "same", data_format="channels_first")
    machine = dataclasses.replace(target("znver3"), l1_bytes=32 << 10, l2_bytes=512 << 10, cores=2)
    found = [
        voxel.decide(Workload.of(config, shape), one)
        for shape, one in (
            ((1, 64, 32, 32, 32), machine),
            ((1, 64, 32, 32, 96), machine),
            ((1, 64, 32, 32, 32), dataclasses.replace(machine, cpu="haswell")),
        )
    ]
    assert [one and one.block for one in found] == [(1, 4, 1), (1, 1, 1), (1, 1, 1)]


def test_more_channels_are_packed_where_products_hide_more() -> None:
    work = Workload.of(
        LayerConfig(1, 4, 2, "same", data_format="channels_first"), (1, 64, 32, 32, 32)
    )
    wide, narrow = (
        dataclasses.replace(target(cpu), l1_bytes=32 << 10, l2_bytes=1 << 20)
        for cpu in ("sapphirerapids", "znver4")
    )
    for machine, most in ((wide, 32), (narrow, 64)):
        tiling = voxel.decide(work, machine)
        assert tiling is not None
        assert VoxelForm(work, tiling).packed_shape[0] == most


def test_wide_registers_on_narrow_units_hide_what_is_beside_the_products() -> None:
    # Zen 4 begins one product of 512 bits a cycle: the form with the fewest is the fastest.
    config = LayerConfig(1, 3, strides=(1, 2, 2), padding="same")
    work = Workload.of(config, (1, 16, 128, 128, 96))
    machines = [
        dataclasses.replace(target(cpu), l1_bytes=32 << 10, l2_bytes=1 << 20, cores=2)
        for cpu in ("sapphirerapids", "znver4")
    ]
    assert [products_a_cycle(machine, 512) for machine in machines] == [2, 1]
    assert products_a_cycle(machines[1], 256) == 2
    assert [schedules.decide(work, one).form for one in machines] == ["columns", "voxel"]
    cube = Workload.of(LayerConfig(1, 4, strides=2, padding="same"), (1, 32, 32, 32, 64))
    assert [schedules.decide(cube, one).form for one in machines] == ["columns", "dots"]
    # Of half width, too: columns take more than their model says where caches hold the input.
    for channels, size in ((64, 32), (128, 24)):
        layer = LayerConfig(1, 4, strides=2, padding="same", dtype="float16")
        half = Workload.of(layer, (1, size, size, size, channels))
        assert schedules.decide(half, machines[1]).form == "dots"
    tiling = schedules.decide(work, machines[1])
    # Weights are operands of the products, not registers.
    assert tiling.width == 1
    for rule in (column, dot, voxel):
        tiling = rule.decide(work, machines[0], always=True)
        assert tiling is not None
        two, one = (rule.cycles(work, machine, tiling) for machine in machines)
        assert 0.5 * two < one < two


def test_rows_shorter_than_a_register_take_lanes_of_voxels_too() -> None:
    machine = dataclasses.replace(target("znver4"), l1_bytes=32 << 10, l2_bytes=1 << 20, cores=2)
    config = LayerConfig(4, (3, 1, 3), (2, 1, 2), data_format="channels_first")
    tiling = schedules.decide(Workload.of(config, (1, 89, 21, 48, 3)), machine)
    assert (tiling.form, tiling.vector) == ("voxel", 4)
    # One tap and few filters: a transposed copy of the input would take as long as the products.
    one = LayerConfig(12, 1, data_format="channels_first")
    assert schedules.decide(Workload.of(one, (1, 144, 7, 9, 48)), machine).form == "voxel"


def test_few_filters_with_channels_first_take_lanes_of_voxels() -> None:
    machine = dataclasses.replace(target("x86-64-v4"), l2_bytes=2 << 20, cores=2)
    for filters, kernel, sizes in ((1, 4, (64, 32, 32, 32)), (3, 4, (240, 8, 64, 64))):
        config = LayerConfig(
            filters, kernel, strides=2, padding="same", data_format="channels_first"
        )
        assert schedules.decide(Workload.of(config, (1, *sizes)), machine).form == "voxel"
