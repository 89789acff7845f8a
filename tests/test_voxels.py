"""The voxel form: borders, holes, dilation, parts of the channels, dtypes, layouts, its rule."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, whole_numbers

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.voxels import VoxelForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import voxel

SAME = {"padding": "same"}
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "even taps": ({"filters": 1, "kernel_size": 4, "strides": 2, **SAME}, (2, 3, 4, 9, 8)),
    "odd taps": ({"filters": 2, "kernel_size": 3, "strides": 2, **SAME}, (1, 3, 2, 17, 5)),
    "stride 1": ({"filters": 3, "kernel_size": (2, 3, 5)}, (1, 3, 2, 12, 4)),
    "stride 3": ({"filters": 2, "kernel_size": (4, 4, 5), "strides": 3, **SAME}, (1, 3, 4, 13, 3)),
    "dilated": ({"filters": 2, "kernel_size": 3, "dilation_rate": (2, 3, 4)}, (1, 5, 4, 14, 6)),
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


@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_the_layer(name: str, first: bool) -> None:
    arguments, shape = LAYERS[name]
    if first:
        arguments = {**arguments, "data_format": "channels_first"}
        shape = (shape[0], shape[4], *shape[1:4])
    config = LayerConfig(**{"activation": "relu", **arguments})
    rng = np.random.default_rng(3)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    for registers, width, stretch, rows, planes in TILES:
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


def test_few_filters_with_channels_first_take_lanes_of_voxels() -> None:
    machine = dataclasses.replace(target("x86-64-v4"), l2_bytes=2 << 20, cores=2)
    for filters, kernel, sizes in ((1, 4, (64, 32, 32, 32)), (3, 4, (240, 8, 64, 64))):
        config = LayerConfig(
            filters, kernel, strides=2, padding="same", data_format="channels_first"
        )
        assert schedules.decide(Workload.of(config, (1, *sizes)), machine).form == "voxel"
