"""The column form: every number of reduced axes, layouts shared by shapes, dtypes, odd sizes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target
from turns import few, turns

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.columns import ColumnForm, column_axes, columns_of, pieces_of
from tvmconv.compute.legality import refusal
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import column
from tvmconv.schedules.cpu.column_space import variants

SAME = {"padding": "same"}
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "all reduced": ({"filters": 1, "kernel_size": 4, "strides": 2, **SAME}, (2, 3, 4, 9, 20)),
    "depth reduced": ({"filters": 3, "kernel_size": (2, 3, 5), "strides": 2}, (1, 3, 2, 7, 9)),
    "none reduced": ({"filters": 2, "kernel_size": 3, "strides": 2, **SAME}, (1, 4, 3, 17, 5)),
    "dilated": ({"filters": 2, "kernel_size": 3, "dilation_rate": 2}, (1, 3, 4, 5, 6)),
    "cropped": ({"filters": 1, "kernel_size": 6, "strides": 2, **SAME}, (1, 5, 3, 16, 7)),
    "half": ({"filters": 1, "kernel_size": 4, "strides": 2, "dtype": "float16"}, (1, 3, 3, 5, 20)),
    "brain": ({"filters": 2, "kernel_size": 4, "strides": 2, "dtype": "bfloat16"}, (1, 3, 3, 5, 8)),
    "half, odd": (
        {"filters": 3, "kernel_size": (2, 3, 4), "strides": (1, 1, 2), "dtype": "float16", **SAME},
        (2, 3, 4, 11, 7),
    ),
    "brain, apart": (
        {"filters": 1, "kernel_size": 2, "dilation_rate": (5, 3, 1), "dtype": "mixed_bfloat16"},
        (1, 3, 2, 7, 5),
    ),
    "double": ({"filters": 1, "kernel_size": 3, "strides": 3, "dtype": "float64"}, (1, 3, 3, 5, 6)),
    "two pieces": ({"filters": 2, "kernel_size": 3, "strides": 2, **SAME}, (1, 3, 2, 32, 5)),
    "last piece longer": ({"filters": 1, "kernel_size": 4, "strides": 2}, (1, 2, 2, 51, 3)),
    "half, pieces": (
        {"filters": 1, "kernel_size": 4, "strides": 2, "dtype": "float16"}, (1, 2, 3, 35, 6),
    ),
    "one voxel": ({"filters": 1, "kernel_size": 4, "strides": 2, **SAME}, (1, 1, 1, 1, 9)),
}  # fmt: skip


@pytest.mark.parametrize("turn", few((0, 1), (0,)))
@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_the_layer(name: str, turn: int) -> None:
    arguments, shape = LAYERS[name]
    config = LayerConfig(**arguments, activation="relu")
    work = Workload.of(config, shape)
    rng = np.random.default_rng(3)
    # Small whole numbers: exact in every dtype, so that a wrong product cannot hide.
    x = rng.integers(-2, 3, shape).astype(np.float64)
    kernel = rng.integers(-2, 3, config.kernel_shape(shape[-1])).astype(np.float64)
    bias = rng.integers(-2, 3, config.filters).astype(np.float64)
    expected = conv3d_transpose(config, x, kernel, bias)
    tiles = [(1, 4, 2, 1, True), (2, 3, 1, 3, True)]
    if work.input_dtype != work.accumulate_dtype:
        tiles += [(1, 4, 2, 1, False), (2, 3, 1, 3, False)]
    for reduced, (number, some) in itertools.product(column.reducible(work), enumerate(tiles)):
        if (reduced + number + turn) % 2:
            continue
        registers, width, rows, planes, pack = some
        tiling = Tiling(
            "columns", 4, registers, width, rows, pack=pack, planes=planes, reduced=reduced
        )
        y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
        np.testing.assert_array_equal(y.astype(np.float64), expected)


ROWS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "whole registers": ({"filters": 1, "kernel_size": 4, "strides": 2, **SAME}, (2, 5, 3, 4, 16)),
    "odd width": ({"filters": 3, "kernel_size": (2, 3, 5), "strides": 2}, (1, 4, 3, 2, 13)),
    "dilated": ({"filters": 2, "kernel_size": 3, "dilation_rate": (4, 3, 2)}, (1, 3, 2, 3, 5)),
    "cropped": ({"filters": 1, "kernel_size": 6, "strides": 2, **SAME}, (1, 7, 3, 5, 6)),
    "one row": ({"filters": 2, "kernel_size": (1, 1, 3), "strides": 2}, (3, 1, 1, 1, 4)),
    "behind the last tap": (
        {"filters": 1, "kernel_size": 1, "strides": 3, "output_padding": 2}, (1, 3, 2, 3, 9),
    ),
    "half": ({"filters": 1, "kernel_size": 3, "strides": 2, "dtype": "float16"}, (1, 3, 3, 5, 9)),
    "brain": ({"filters": 2, "kernel_size": 3, "dtype": "bfloat16", **SAME}, (1, 9, 3, 4, 11)),
    "double": ({"filters": 1, "kernel_size": 3, "strides": 3, "dtype": "float64"}, (1, 4, 3, 5, 6)),
}  # fmt: skip


# All columns at once; several passes and registers; more registers than passes.
@pytest.mark.parametrize(
    ("name", "registers", "width", "rows", "planes"),
    turns(tuple(ROWS), ((99, 1, 2, 1), (5, 3, 1, 3), (99, 2, 3, 2))),
)
def test_it_computes_the_layer_with_channels_first(
    name: str, registers: int, width: int, rows: int, planes: int
) -> None:
    arguments, shape = ROWS[name]
    config = LayerConfig(**arguments, data_format="channels_first", activation="relu")
    rng = np.random.default_rng(3)
    x = rng.integers(-2, 3, shape).astype(np.float64)
    kernel = rng.integers(-2, 3, config.kernel_shape(shape[1])).astype(np.float64)
    bias = rng.integers(-2, 3, config.filters).astype(np.float64)
    expected = conv3d_transpose(config, x, kernel, bias)
    tiling = Tiling("columns", 4, registers, width, rows, planes=planes)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y.astype(np.float64), expected)


def test_pieces_make_a_row_and_none_is_short() -> None:
    for voxels in range(1, 200):
        for vector in (4, 8, 16, 32):
            pieces = pieces_of(voxels, vector)
            assert sum(count * size for count, size in pieces) == voxels
            starts = [count * size for count, size in pieces[:-1]]
            assert all(start % vector == 0 for start in starts)
            least = max(16, vector)
            assert all(min(voxels, least) <= size < 2 * least for _, size in pieces)


def test_lanes_past_the_last_column_are_not_kept() -> None:
    work = Workload.of(LayerConfig(1, 3, strides=2), (1, 4, 4, 64, 5))
    form = ColumnForm(work, Tiling("columns", 16, 2, 8, 2))
    assert (form.columns, form.lanes) == (27, 32)
    assert form.sums.ring_shape[2] == 27
    assert form.products_shape == (16, 32)


def test_register_tiles_ask_for_inputs_and_for_the_places_of_outputs() -> None:
    work = Workload.of(LayerConfig(2, 3, strides=2), (1, 4, 4, 32, 40))
    # 54 columns: two blocks, of which one asks for the outputs.
    script = lower(work, Tiling("columns", 16, 2, 8, 2)).kernel.script()
    asked = [line for line in script.splitlines() if "T.prefetch(" in line]
    assert sum("address_of(input[" in line for line in asked) == 2
    assert sum("address_of(output[" in line for line in asked) == 1


def test_columns_are_phases_where_taps_are_summed() -> None:
    work = Workload.of(LayerConfig(3, (4, 6, 3), strides=2), (1, 4, 4, 8, 5))
    assert list(column.reducible(work)) == [0, 1, 2]
    assert [column_axes(work, n) for n in range(3)] == [(4, 6, 3), (2, 6, 3), (2, 2, 3)]
    assert [columns_of(work, n) for n in range(3)] == [216, 108, 36]


@pytest.mark.parametrize(
    ("machine", "half", "brain"),
    [
        ("x86-64-v2", True, False),
        ("x86-64-v3", False, False),
        ("x86-64-v4", False, False),
        ("cortex-a53", False, False),
        ("riscv64-rvv", True, False),
    ],
)
def test_a_register_tile_widens_its_inputs_where_an_instruction_does(
    machine: str, half: bool, brain: bool
) -> None:
    for dtype, rows in (("float16", half), ("bfloat16", brain)):
        work = Workload.of(LayerConfig(1, 4, strides=2, dtype=dtype), (1, 8, 16, 32, 64))
        tiling = column.decide(work, target(machine), always=True)
        assert tiling is not None
        assert tiling.pack == rows
        form = ColumnForm(work, tiling)
        voxels = math.prod(form.widened_shape) // 64
        assert voxels == tiling.width if not rows else voxels >= work.plan.axes[2].size
    wide = Workload.of(LayerConfig(1, 4, strides=2), (1, 8, 16, 32, 64))
    plain = column.decide(wide, target(machine), always=True)
    assert plain is not None
    assert math.prod(ColumnForm(wide, plain).widened_shape) == 0


@pytest.mark.parametrize(("name", "channels"), [("half", 20), ("brain", 8), ("half, odd", 7)])
@pytest.mark.parametrize("some", few((4, 3), (0,)))
def test_tiles_widen_some_channels_at_a_time(name: str, channels: int, some: int) -> None:
    arguments, (*voxels, _) = LAYERS[name]
    shape = (*voxels, channels)
    config = LayerConfig(**arguments)
    work = Workload.of(config, shape)
    rng = np.random.default_rng(5)
    x = rng.integers(-2, 3, shape).astype(np.float64)
    kernel = rng.integers(-2, 3, config.kernel_shape(channels)).astype(np.float64)
    bias = rng.integers(-2, 3, config.filters).astype(np.float64)
    reduced = max(column.reducible(work))
    tiling = Tiling("columns", 4, 2, 3, 2, pack=False, planes=2, reduced=reduced, stretch=some)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    np.testing.assert_array_equal(y.astype(np.float64), expected)
    form = ColumnForm(work, tiling)
    assert form.widened_shape == (-(-channels // some), 3, some)
    assert refusal(work, dataclasses.replace(tiling, stretch=channels)) is None
    for wrong in ({"stretch": channels + 1}, {"pack": True}):
        assert refusal(work, dataclasses.replace(tiling, **wrong)) is not None


def test_some_channels_are_widened_at_a_time_where_that_was_measured() -> None:
    half = LayerConfig(1, 4, strides=2, dtype="float16")
    for cpu, channels, some in (("znver3", 64, 8), ("znver3", 15, 0), ("haswell", 64, 0)):
        machine = dataclasses.replace(target("x86-64-v3"), cpu=cpu)
        tiling = column.decide(Workload.of(half, (1, 8, 16, 32, channels)), machine, always=True)
        assert tiling is not None
        assert tiling.stretch == some
    wide = Workload.of(LayerConfig(1, 4, strides=2), (1, 8, 16, 32, 64))
    plain = column.decide(wide, dataclasses.replace(machine, cpu="znver3"), always=True)
    assert plain is not None
    assert plain.stretch == 0


@pytest.mark.parametrize(("dtype", "some"), [("float32", 0), ("float16", 5), ("bfloat16", 0)])
def test_tall_tiles_load_their_columns_by_turns(dtype: str, some: int) -> None:
    config = LayerConfig(2, 3, strides=2, dtype=dtype, padding="same")
    shape = (1, 2, 3, 16, 5)
    rng = np.random.default_rng(6)
    x = rng.integers(-2, 3, shape).astype(np.float64)
    kernel = rng.integers(-2, 3, config.kernel_shape(5)).astype(np.float64)
    bias = rng.integers(-2, 3, config.filters).astype(np.float64)
    # Three blocks of 16 columns and one of 6: tiles of 3 voxels, and of 2.
    tiling = Tiling("columns", 4, 4, 3, 2, pack=not some, planes=2, stretch=some, tall=True)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y.astype(np.float64), conv3d_transpose(config, x, kernel, bias))


def test_tiles_are_tall_where_that_was_measured() -> None:
    work = Workload.of(LayerConfig(1, 3, strides=2, padding="same"), (1, 8, 16, 32, 64))
    for cpu, tile in (("znver3", (4, 3)), ("haswell", (2, 6))):
        machine = dataclasses.replace(target("x86-64-v3"), cpu=cpu)
        tiling = column.decide(work, machine, always=True)
        assert tiling is not None
        assert (tiling.registers, tiling.width) == tile
        found = [one for one in variants(work, machine, tiling) if one.base.registers == tile[0]]
        widths = next(values for name, values in found[0].choices if name == "width")
        assert tile[1] in widths


def test_taps_beyond_the_ends_do_not_count() -> None:
    machine = target("x86-64-v4")
    thin = Workload.of(LayerConfig(3, 4, strides=2, padding="same"), (1, 5, 61, 61, 240))
    chosen = column.decide(thin, machine)
    assert chosen is not None
    # Two taps at six positions, and ten of these twelve products exist.
    assert chosen.reduced == 2
    # One register of columns needs a load for each product, and one more for inputs ahead.
    few = Workload.of(LayerConfig(1, 4, strides=2, padding="same"), (1, 32, 32, 33, 64))
    chosen = column.decide(few, dataclasses.replace(machine, l2_bytes=2 << 20, cores=2))
    assert chosen is not None
    assert (chosen.reduced, chosen.registers) == (1, 2)


def test_shapes_of_one_layer_share_their_columns() -> None:
    config = LayerConfig(1, 4, strides=2, padding="same")
    works = [Workload.of(config, (1, d, 16, 32, 64)) for d in (8, 9)]
    tilings = schedules.decide_all(works, target("x86-64-v3"))
    assert {tiling.form for tiling in tilings} == {"columns"}
    made = [lower(work, tiling) for work, tiling in zip(works, tilings, strict=True)]
    assert made[0].layout == made[1].layout


def test_the_form_is_not_for_rows_without_a_register_nor_for_rows_that_are_mixed() -> None:
    first = LayerConfig(1, 4, strides=2, data_format="channels_first")
    assert column.refused(Workload.of(first, (1, 64, 4, 4, 3)))
    assert column.decide(Workload.of(first, (1, 64, 4, 4, 3)), target(), always=True) is None
    assert not column.refused(Workload.of(first, (1, 64, 4, 4, 4)))
    mixed = LayerConfig(4, 4, strides=2, activation="softmax")
    assert column.refused(Workload.of(mixed, (1, 4, 4, 8, 64)))


def test_registers_of_voxels_fit_the_row_and_shapes_share_their_columns() -> None:
    config = LayerConfig(1, 4, strides=2, padding="same", data_format="channels_first")
    works = [Workload.of(config, (1, 64, 16, 32, width)) for width in (64, 63, 31, 15)]
    machine = target("x86-64-v4")
    first = column.decide(works[0], machine, always=True)
    assert first is not None
    tilings = [column.decide(work, machine, layout=first) for work in works]
    assert None not in tilings
    assert [one.vector for one in tilings if one] == [16, 16, 16, 8]
    layouts = [lower(work, one).layout for work, one in zip(works, tilings, strict=True) if one]
    assert layouts == layouts[:1] * 4


def test_scratch_holds_a_ring_of_products_and_fits_the_cache() -> None:
    machine = target("x86-64-v4")
    work = Workload.of(LayerConfig(1, 3, strides=(1, 2, 2), padding="same"), (1, 16, 64, 64, 96))
    tiling = column.decide(work, machine, always=True)
    assert tiling is not None
    form = ColumnForm(work, tiling)
    # Three taps of the depth, of which none is summed: three planes of products.
    assert form.sums.ring_shape[0] == 3
    assert form.offsets[-1] * 4 <= 0.6 * machine.l2_bytes


def test_products_that_the_cache_does_not_hold_cost_less_than_to_make_them_twice() -> None:
    machine = target("x86-64-v3")
    work = Workload.of(LayerConfig(1, 3, strides=(1, 2, 2), padding="same"), (1, 16, 128, 128, 96))
    tiling = column.decide(work, machine)
    assert tiling is not None
    assert tiling.rows > 8
    scratch = ColumnForm(work, tiling).offsets[-1] * 4
    assert 0.6 * machine.l2_bytes < scratch <= 3.9e6 / machine.cores
    # The same tiles cost less where the cache holds their products.
    wide = dataclasses.replace(machine, l2_bytes=4 << 20)
    assert column.cycles(work, wide, tiling) < column.cycles(work, machine, tiling)
