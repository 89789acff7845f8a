"""The products of the Toom-Cook form: filters over whole registers, and what last tiles need."""

from __future__ import annotations

import dataclasses
import itertools
import random

import numpy as np
import pytest
from kernels import Kernel, target
from turns import turns

from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import AxisTiles, outputs_of
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.geometry import Axis, output_length
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook
from tvmconv.schedules.cpu.toom_cook_cycles import cycles


@pytest.mark.parametrize(("vector", "channels", "dots"), turns((4, 8, 16), (16, 27), (1, 2, 3, 4)))
def test_last_filters_with_channels_as_lanes(vector: int, channels: int, dots: int) -> None:
    strides = 2 if vector == 16 else (1, 2, 2)  # eight phases of short registers are much code
    config = LayerConfig(16 + dots, (3, 4, 5), strides, "same", activation="relu")
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
        if tiles.is_short:
            continue  # fewer still: see test_last_tiles
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


@pytest.mark.parametrize("policy", ["float32", "float16"])
def test_tasks_ask_for_the_next_ones_input(policy: str) -> None:
    # Eight phases are much code.
    config = LayerConfig(18, 3, (1, 2, 2), "same", activation="relu", dtype=policy)
    shape, rng = (2, 5, 5, 13, 20), np.random.default_rng(5)
    dtype = "float16" if policy == "float16" else "float32"
    x, kernel, bias = (
        rng.integers(-2, 3, some).astype(dtype)
        for some in (shape, config.kernel_shape(20), (config.filters,))
    )
    plain = Tiling("toom-cook", 16, 1, 3, 1, outputs=(2, 2, 3), block=(1, 2, 3), shared=2, dots=2)
    results = [
        Kernel(config, shape, tiling=dataclasses.replace(plain, fetch=fetch))(x, kernel, bias, rng)
        for fetch in (False, True)
    ]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[1], conv3d_transpose(config, x, kernel, bias))


def test_large_inputs_are_asked_for_where_registers_hold_a_line() -> None:
    config = LayerConfig(32, 3, 2, "same")
    large, small = (Workload.of(config, (1, *size, 64)) for size in ((24, 32, 64), (6, 16, 16)))
    wide, narrow = target("znver5"), target("znver3")
    assert toom_cook.require(large, wide).fetch
    assert not toom_cook.require(small, wide).fetch
    assert not toom_cook.require(large, narrow).fetch
    first = dataclasses.replace(config, data_format="channels_first")
    turned = Workload.of(first, (1, 64, 24, 32, 64))
    assert not toom_cook.require(turned, wide).fetch


def test_small_tasks_where_registers_hold_a_line() -> None:
    """Rows are cut into equal register tiles, so that a task may have a part of one."""
    work = Workload.of(LayerConfig(32, 3, 2, "same"), (1, 24, 32, 64, 64))
    tiling = toom_cook.require(work, target("znver5"))
    form = ToomCookForm(work, tiling)
    assert form.axes[2].tiles % tiling.width == 0
    assert form.axes[2].blocks > 1
    assert form.offsets[-1] * 4 <= 0.7 * target("znver5").l2_bytes


def test_scratch_leaves_room_for_small_weights_that_another_core_reads_too() -> None:
    work = Workload.of(LayerConfig(24, 3, 1, "same"), (1, 16, 24, 48, 24))
    for cores, most in ((1, 1.0), (2, 0.75)):
        machine = dataclasses.replace(target("znver5"), l2_bytes=1 << 20, cores=cores)
        form = ToomCookForm(work, toom_cook.require(work, machine))
        share = 4 * (form.offsets[-1] + form.packed_size) / machine.l2_bytes
        assert share <= most


def test_scratch_of_all_cores_leaves_room_in_the_last_cache_for_the_weights() -> None:
    work = Workload.of(LayerConfig(240, 4, 2, "same"), (1, 4, 32, 32, 240))
    for cores in (1, 2):
        machine = dataclasses.replace(target("znver4"), cores=cores, last_level_bytes=32 << 20)
        form = ToomCookForm(work, toom_cook.require(work, machine))
        assert 4 * form.offsets[-1] * 2 <= machine.last_level_bytes / 2
        large = dataclasses.replace(machine, last_level_bytes=256 << 20)
        whole = ToomCookForm(work, toom_cook.require(work, large))
        assert whole.offsets[-1] > 1.5 * form.offsets[-1]
        assert cycles(form, machine) <= 1.03 * cycles(whole, machine)
    # Where it was not measured the cheapest is taken.
    machine = dataclasses.replace(target("znver5"), cores=2, last_level_bytes=32 << 20)
    other = dataclasses.replace(machine, last_level_bytes=256 << 20)
    assert toom_cook.require(work, machine) == toom_cook.require(work, other)


def test_tasks_are_small_where_the_shared_cache_is_late() -> None:
    """Scratch and weights that fill it cost more on Zen 3 than the products they save."""
    machines = [
        dataclasses.replace(target("znver3"), cpu=cpu, cores=2, l2_bytes=512 << 10)
        for cpu in ("znver3", "haswell")
    ]
    wide = Workload.of(LayerConfig(240, 4, 2, "same"), (1, 4, 32, 32, 240))
    late, other = (ToomCookForm(wide, toom_cook.require(wide, one)) for one in machines)
    assert late.offsets[-1] < 0.5 * other.offsets[-1]
    many = Workload.of(LayerConfig(64, 4, 2, "same"), (1, 16, 16, 16, 128))
    late, other = (ToomCookForm(many, toom_cook.require(many, one)) for one in machines)
    assert late.packed_size < 0.7 * other.packed_size
    # Little scratch, or few weights: the same.
    for config, shape in (
        (LayerConfig(32, 3, 2, "same"), (1, 24, 32, 64, 64)),
        (LayerConfig(32, 3, 1, "same"), (1, 16, 32, 32, 32)),
    ):
        work = Workload.of(config, shape)
        late, other = (toom_cook.require(work, one) for one in machines)
        assert (late.outputs, late.block) == (other.outputs, other.block)


def test_filters_are_one_group_where_two_are_much_code() -> None:
    work = Workload.of(LayerConfig(64, 3, 2, "same"), (1, 12, 16, 32, 64))
    found = {cpu: toom_cook.require(work, target(cpu)) for cpu in ("znver3", "haswell")}
    assert {cpu: len(ToomCookForm(work, one).groups) for cpu, one in found.items()} == {
        "znver3": 1, "haswell": 2,
    }  # fmt: skip
