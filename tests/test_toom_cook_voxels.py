"""Toom-Cook for few filters: tiles along the width as lanes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, whole_numbers
from turns import few

from tvmconv import schedules
from tvmconv.compute import layout
from tvmconv.compute.schemes import KINDS
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm
from tvmconv.compute.transforms import AxisTiles, outputs_of
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import several
from tvmconv.schedules.cpu import toom_cook, toom_cook_voxel
from tvmconv.schedules.space import Space

#: Two roundings of the largest result: what the error may be where the direct form is almost exact.
FLOOR = 2.0**-22
LARGE = (1, 8, 64, 64, 240)


def any_layer(rng: random.Random, **more: Any) -> tuple[LayerConfig, tuple[int, ...], Tiling]:
    """A layer that the form serves, and any tiling."""
    while True:
        strides = rng.choice(((2, 2, 2), (1, 1, 1), (1, 2, 2), (2, 1, 3)))
        kernel = tuple(rng.choice((s, s + 1, 2 * s, 2 * s + 1, 3 * s)) for s in strides)
        first = rng.random() < 0.25
        config = LayerConfig(
            rng.randint(1, 8), kernel, strides, rng.choice(("same", "valid")),
            data_format="channels_first" if first else "channels_last",
            use_bias=rng.random() < 0.8, **more,
        )  # fmt: skip
        sizes = (rng.randint(1, 6), rng.randint(1, 6), rng.randint(1, 40))
        channels, batch = rng.randint(8, 40), rng.choice((1, 1, 2))
        shape = (batch, channels, *sizes) if first else (batch, *sizes, channels)
        work = Workload.of(config, shape).joined()
        if toom_cook.refusal(work) is None and work.plan.flops < 2e7:
            return config, shape, any_tiling(rng, work)


def any_tiling(rng: random.Random, work: Workload) -> Tiling:
    outputs = [rng.choice(outputs_of(axis)) for axis in work.plan.axes]
    tiles = [AxisTiles(a, m, 1, True).tiles for a, m in zip(work.plan.axes, outputs, strict=True)]
    return Tiling(
        "toom-cook", rng.choice((4, 8, 16)), rng.randint(1, work.plan.filters), rng.randint(1, 3),
        rng.choice((1, 1, 2, 3)), outputs=(outputs[0], outputs[1], outputs[2]),
        block=(rng.randint(1, min(3, tiles[0])), rng.randint(1, min(3, tiles[1])), tiles[2]),
        stretch=rng.choice((0, 4, 8, 16)), fetch=rng.random() < 0.5, across=True,
    )  # fmt: skip


@pytest.mark.parametrize("seed", few(range(12), range(6)))
def test_whole_numbers_are_exact(seed: int) -> None:
    config, shape, tiling = any_layer(random.Random(seed), activation="relu")
    rng = np.random.default_rng(seed)
    x, kernel, bias = (
        None if some is None else some.astype(np.float32)
        for some in whole_numbers(config, shape, rng)
    )
    assert x is not None and kernel is not None
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


@pytest.mark.parametrize(("block", "rows"), [(3, 2), (5, 4)])
def test_rows_that_a_block_does_not_have_are_not_read_behind_scratch(block: int, rows: int) -> None:
    """The last rows of a block are fewer than share registers, and of little but channels."""
    config, shape = LayerConfig(1, (1, 2, 2)), (1, 1, 14, 20, 64)
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(2))
    tiling = Tiling(
        "toom-cook", 16, 1, 2, rows, outputs=(1, 3, 3), block=(1, block, 7), across=True
    )
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


@pytest.mark.parametrize("seed", few(range(8), range(4)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    config, shape, tiling = any_layer(random.Random(1000 + seed))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, np.float32)
    channels = shape[config.channel_axis]
    kernel = rng.standard_normal(config.kernel_shape(channels), np.float32)
    bias = rng.standard_normal(config.filters, np.float32) if config.use_bias else None
    expected = conv3d_transpose(config, x, kernel, bias)
    plain = schedules.decide(Workload.of(config, shape), target(), columns=False)
    scale = float(np.max(np.abs(expected), initial=1e-30))
    ours, others = (
        float(np.max(np.abs(Kernel(config, shape, tiling=one)(x, kernel, bias) - expected))) / scale
        for one in (tiling, plain)
    )
    assert ours <= max(2 * others, FLOOR)


@pytest.mark.parametrize(
    ("policy", "data_format", "activation"),
    [
        ("float16", "channels_last", "tanh"),
        ("bfloat16", "channels_first", "relu"),
        ("mixed_float16", "channels_first", "tanh"),
        ("bfloat16", "channels_last", "softmax"),
        ("bfloat16", "channels_last", "relu"),
    ],
)
def test_half_floats_and_activations(policy: str, data_format: str, activation: str) -> None:
    config = LayerConfig(
        3, 4, 2, "same", dtype=policy, activation=activation, data_format=data_format
    )
    shape = (2, 3, 4, 19, 18) if data_format == "channels_last" else (2, 18, 3, 4, 19)
    rng = np.random.default_rng(3)
    dtype = numpy_dtype(config.compute_dtype)
    x = rng.standard_normal(shape).astype(dtype)
    kernel = (0.1 * rng.standard_normal(config.kernel_shape(18))).astype(
        numpy_dtype(config.variable_dtype)
    )
    bias = rng.standard_normal(3).astype(numpy_dtype(config.variable_dtype))
    work = Workload.of(config, shape).joined()
    found = list(toom_cook_voxel.candidates(work, target(), None, fetch=False))
    # What mixes the outputs of a row is not served.
    assert bool(found) == (not work.mixed_axes or work.finishes_whole)
    if not found:
        return
    y = Kernel(config, shape, tiling=found[0].tiling)(x, kernel, bias, rng).astype(np.float64)
    expected = conv3d_transpose(config, x, kernel.astype(dtype).astype(np.float64), bias)
    unit = 2.0**-10 if "bfloat" not in policy else 2.0**-7
    assert np.max(np.abs(y - expected)) <= unit * np.max(np.abs(expected))


def test_open_batch() -> None:
    config = LayerConfig(2, 3, 2, "same")
    work = Workload.of(config, (-1, 3, 5, 20, 16)).joined()
    tiling = next(iter(toom_cook_voxel.candidates(work, target(), None, fetch=True))).tiling
    kernel = Kernel(config, (-1, 3, 5, 20, 16), tiling=tiling)
    for batch in (0, 1, 3):
        rng = np.random.default_rng(batch)
        x = rng.standard_normal((batch, 3, 5, 20, 16), np.float32)
        weights = rng.standard_normal(config.kernel_shape(16), np.float32)
        y = kernel(x, weights, np.ones(2, np.float32), rng if batch else None)
        expected = conv3d_transpose(config, x, weights, np.ones(2, np.float32))
        assert np.max(np.abs(y - expected), initial=0.0) < 1e-4


@pytest.mark.parametrize(("size", "stride", "m"), [(4, 2, 2), (3, 2, 3)])
def test_nan_stays_inside_the_tiles_that_read_it(size: int, stride: int, m: int) -> None:
    config, shape = LayerConfig(3, size, stride, "same"), (1, 6, 7, 9, 24)
    work = Workload.of(config, shape)
    tiles = AxisTiles(work.plan.axes[2], m, 1, True).tiles
    tiling = Tiling(
        "toom-cook", 4, 3, 1, 1, outputs=(m, m, m), block=(1, 2, tiles), stretch=16, across=True
    )
    rng = np.random.default_rng(5)
    clean = rng.standard_normal(shape, np.float32)
    kernel = np.abs(rng.standard_normal(config.kernel_shape(24), np.float32)) + 0.1
    kernels = [Kernel(config, shape, tiling=tiling), Kernel(config, shape, form="definition")]
    span = m * stride
    for at, value in itertools.product(((0, 0, 0, 0, 3), (0, 3, 4, 5, 15)), (np.nan, np.inf)):
        x = clean.copy()
        x[at] = value
        found, exact = (~np.isfinite(one(x, kernel, np.zeros(3, np.float32))[0]).all(-1)
                        for one in kernels)  # fmt: skip
        assert found[exact].all()
        cells = set(map(tuple, np.argwhere(exact) // span))
        assert set(map(tuple, np.argwhere(found) // span)) <= cells


@pytest.mark.parametrize("seed", range(20))
def test_every_product_finds_its_sum(seed: int) -> None:
    config, shape, tiling = any_layer(random.Random(seed))
    form = ToomCookVoxelForm(Workload.of(config, shape).joined(), tiling)
    for number, axis in enumerate(form.axes):
        columns = axis.needed()
        for group in axis.classes:
            jobs = form.jobs(number, group)
            assert len(jobs) == len(group.starts) * len(group.scheme.points)
            assert [job.column for job in jobs] == sorted(job.column for job in jobs)
            for job in jobs:
                kind, offset = columns[job.column]
                wanted = group.scheme.points[job.point]
                assert (kind, offset - group.starts[job.member]) == wanted
    width = form.axes[2]
    furthest = max(offset + KINDS[kind][-1][0] for kind, offset in width.needed())
    assert (width.tiles - 1) + furthest // width.outputs < form.pitch


@pytest.mark.parametrize("machine", ["znver4", "emeraldrapids"])
def test_the_rule(machine: str) -> None:
    def chosen(filters: int, channels: int, *sizes: int, kernel: int = 4) -> bool:
        work = Workload.of(LayerConfig(filters, kernel, 2, "same"), (1, *sizes, channels))
        tiling = schedules.decide(work.joined(), target(machine), algorithm="auto")
        return tiling.form == "toom-cook" and tiling.across

    assert chosen(3, 240, 8, 64, 64) == (machine == "znver4")
    assert chosen(4, 128, 8, 64, 64)
    # Rows of one register: weights are as many loads as products, which narrow units hide.
    assert chosen(3, 32, 16, 48, 48) == (machine == "znver4")
    first = LayerConfig(4, 4, 2, "same", data_format="channels_first")
    turned = Workload.of(first, (1, 128, 8, 48, 64)).joined()
    assert schedules.decide(turned, target(machine), algorithm="auto").across
    # One filter: the sums of inputs are as much work as the products.
    assert not chosen(1, 64, 32, 32, 32)
    assert not chosen(1, 240, 8, 64, 64)
    assert not chosen(9, 128, 8, 64, 64)


def test_rows_share_registers_where_that_saves_some() -> None:
    def chosen(machine: str, *sizes: int) -> Tiling:
        work = Workload.of(LayerConfig(3, 4, 2, "same"), (1, *sizes, 240)).joined()
        return toom_cook.require(work, target(machine))

    # 22 tiles are two registers, two rows of 24 are three; 32 tiles fill two.
    odd, even = chosen("znver4", 8, 64, 65), chosen("znver4", 8, 64, 64)
    assert (odd.outputs[2], odd.rows, even.outputs[2], even.rows) == (3, 2, 2, 1)
    form = ToomCookVoxelForm(
        Workload.of(LayerConfig(3, 4, 2, "same"), (1, 8, 64, 65, 240)).joined(), odd
    )
    assert (form.vectors, form.row_vectors, form.pieces) == (3, 2, [16, 8])
    assert chosen("emeraldrapids", 8, 64, 65).rows == 1


def test_far_inputs_of_odd_sizes_take_it_on_zen_4() -> None:
    machine = dataclasses.replace(target("znver4"), l2_bytes=1 << 20, cores=2)
    for filters, *sizes in ((2, 8, 64, 64), (3, 8, 64, 65), (3, 5, 61, 61), (3, 11, 67, 67)):
        work = Workload.of(LayerConfig(filters, 4, 2, "same"), (1, *sizes, 240)).joined()
        assert schedules.decide(work, machine, algorithm="auto").across


def test_additions_count_where_they_share_ports_with_products() -> None:
    work = Workload.of(LayerConfig(3, 4, 2, "same"), LARGE).joined()
    tiling = toom_cook.require(work, target("znver4"))
    assert tiling.across and tiling.fetch
    form, machine = ToomCookVoxelForm(work, tiling), target("znver4")
    other = dataclasses.replace(machine, cpu="emeraldrapids")
    assert toom_cook_voxel.cycles(form, machine) < toom_cook_voxel.cycles(form, other)


def test_shapes_and_processors_share_weights() -> None:
    config = LayerConfig(4, 4, 2, "same")
    works = [Workload.of(config, (1, *size, 128)).joined() for size in ((8, 64, 64), (4, 9, 70))]
    machines = [target("znver4"), target("x86-64-v3"), target("x86-64-v2")]
    rows = several.decide_several(works, machines, algorithm="toom-cook")
    assert all(tiling.across for row in rows for tiling in row)
    assert {tiling.vector for row in rows for tiling in row} >= {4, 8, 16}
    found = {layout(work, tiling) for row in rows for work, tiling in zip(works, row, strict=True)}
    assert len(found) == 1


def test_records_and_the_space_hold_it() -> None:
    work = Workload.of(LayerConfig(4, 4, 2, "same"), (1, 8, 64, 64, 128)).joined()
    space = Space.of(work, target("znver4"))
    default = space.default
    assert isinstance(default, Tiling) and default.across
    assert Tiling.from_json(json.loads(json.dumps(default.to_json()))) == default
    assert space.find(default) is not None
    others = [one for one in space.all() if isinstance(one, Tiling) and one.across]
    assert len(set(others)) == len(others) > 10
