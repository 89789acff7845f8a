"""The dot form: ends of rows, dtypes, data formats, what it reads ahead, and its rule."""

from __future__ import annotations

import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, runs_here, target, whole_numbers
from turns import turns

from tvmconv import schedules
from tvmconv.codegen import lowering
from tvmconv.compute import lower
from tvmconv.compute.dots import DotForm, powers, reaches, row_tiles
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.geometry import Axis
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import several
from tvmconv.schedules.cpu import dot

SAME = {"padding": "same"}
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "even taps": ({"filters": 1, "kernel_size": 4, "strides": 2, **SAME}, (2, 3, 4, 9, 8)),
    "odd taps": ({"filters": 2, "kernel_size": 3, "strides": 2, **SAME}, (1, 3, 2, 17, 4)),
    "stride 1": ({"filters": 3, "kernel_size": (2, 3, 5)}, (1, 3, 2, 12, 4)),
    "dilated": ({"filters": 2, "kernel_size": 3, "dilation_rate": (1, 3, 4)}, (1, 3, 4, 14, 4)),
    "cropped": ({"filters": 1, "kernel_size": 6, "strides": 2, **SAME}, (1, 5, 3, 16, 4)),
    "holes": ({"filters": 2, "kernel_size": (1, 2, 1), "strides": (2, 3, 3)}, (1, 2, 3, 9, 4)),
    "behind the last tap": (
        {"filters": 1, "kernel_size": 3, "strides": 3, "output_padding": 2}, (1, 3, 2, 8, 4),
    ),
    "more taps than voxels": ({"filters": 1, "kernel_size": 5, **SAME}, (1, 1, 2, 2, 4)),
    "half": ({"filters": 1, "kernel_size": 4, "strides": 2, "dtype": "float16"}, (1, 3, 3, 11, 8)),
    "brain": ({"filters": 3, "kernel_size": 3, "dtype": "mixed_bfloat16"}, (1, 3, 5, 7, 8)),
    "double": ({"filters": 1, "kernel_size": 3, "strides": 3, "dtype": "float64"}, (1, 3, 3, 5, 8)),
    "no bias": ({"filters": 2, "kernel_size": 3, "use_bias": False}, (2, 1, 1, 9, 4)),
    "whole": ({"filters": 4, "kernel_size": 2, "activation": "linear"}, (1, 2, 3, 8, 4)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "first", "width", "rows", "planes", "pack"),
    turns(tuple(LAYERS), (False, True), ((1, 2, 1, False), (3, 1, 3, False), (4, 9, 2, True))),
)
def test_it_computes_the_layer(
    name: str, first: bool, width: int, rows: int, planes: int, pack: bool
) -> None:
    arguments, shape = LAYERS[name]
    if first:
        arguments = {**arguments, "data_format": "channels_first"}
        shape = (shape[0], shape[4], *shape[1:4])
    config = LayerConfig(**{"activation": "relu", **arguments})
    rng = np.random.default_rng(3)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    tiling = Tiling("dots", 4, 1, width, rows, pack=pack, planes=planes)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y.astype(np.float64), expected)


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_lanes_of_every_width_are_added_up(lanes: int) -> None:
    config = LayerConfig(1, 3, strides=(1, 1, 2), use_bias=False)
    shape = (1, 2, 3, 24, 16)
    rng = np.random.default_rng(5)
    x, kernel, _ = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, None)
    # 2 to 26 sums: of every power of two some that are left over.
    for width in (1, 2, 3, 7, 13):
        built = Kernel(config, shape, tiling=Tiling("dots", lanes, 1, width, 2, pack=False))
        np.testing.assert_array_equal(built(x, kernel, None), expected)


@pytest.mark.parametrize("machine", ["native", "x86-64-v3"])
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_lanes_of_two_bfloat16_channels(lanes: int, machine: str) -> None:
    if not runs_here(machine):
        pytest.skip("this processor does not run the code")
    rounded = numpy_dtype("bfloat16")
    # Rows with ends, of one and of three filters.
    for filters, kernel, shape, dtype in (
        (1, (2, 4, 4), (2, 3, 4, 9, 64), "mixed_bfloat16"), (3, 3, (1, 2, 3, 5, 32), "bfloat16"),
    ):  # fmt: skip
        config = LayerConfig(filters, kernel, 2, "same", dtype=dtype, activation="relu")
        rng = np.random.default_rng(lanes)
        x, weights, bias = whole_numbers(config, shape, rng)
        # Each second channel counts for itself.
        x[..., ::2] *= 3
        weights[..., 1::4] *= 5
        expected = conv3d_transpose(config, x, weights, bias).astype(rounded)
        for width, rows, planes, last in ((1, 2, 1, 0), (3, 9, 3, 32)):
            tiling = Tiling(
                "dots", lanes, 1, width, rows, pack=False, planes=planes, coupled=True, last=last
            )
            built = Kernel(config, shape, tiling=tiling, machine=machine)
            y = built(x, weights, bias, rng)
            np.testing.assert_array_equal(y.astype(np.float64), expected.astype(np.float64))


def test_what_is_not_finite_stays_in_its_sums_of_two_channels_a_lane() -> None:
    config = LayerConfig(2, 3, 2, dtype="bfloat16", activation="linear")
    rng = np.random.default_rng(1)
    x, kernel, bias = whole_numbers(config, (1, 4, 4, 6, 32), rng)
    kernel[kernel == 0] = 1
    x[0, 0, 0, 1, 3], x[0, 3, 1, 2, 8], x[0, 2, 3, 5, 31] = np.nan, np.inf, -np.inf
    for place in (None, (2, 1, 0, 1, 4)):
        if place is not None:
            kernel[place] = np.inf
        tiling = Tiling("dots", 16, 1, 2, 2, pack=False, coupled=True)
        y = Kernel(config, x.shape, tiling=tiling)(x, kernel, bias).astype(np.float64)
        expected = conv3d_transpose(config, x, kernel, bias)
        assert 0 < np.isnan(expected).sum() < expected.size
        np.testing.assert_array_equal(y, expected)


def test_bfloat16_is_multiplied_as_it_lies_where_that_was_measured() -> None:
    shape = (1, 8, 8, 16, 64)

    def coupled(name: str, shape: tuple[int, ...] = shape, **more: Any) -> tuple[bool, int]:
        config = LayerConfig(1, 4, 2, "same", **{"dtype": "bfloat16", **more})
        tiling = dot.decide(Workload.of(config, shape), target(name), always=True)
        assert tiling is not None
        assert not (tiling.coupled and tiling.pack)
        return tiling.coupled, tiling.vector

    assert coupled("znver4") == (True, 16)
    assert coupled("znver4", dtype="mixed_bfloat16") == (True, 16)
    assert coupled("znver4", (1, 8, 8, 16, 48)) == (True, 8)
    # Half as many lanes would have as many products.
    assert coupled("znver4", (1, 8, 8, 16, 40)) == (False, 8)
    first = {"data_format": "channels_first"}
    assert coupled("znver4", (1, 64, 8, 8, 16), **first) == (False, 16)
    assert coupled("znver4", dtype="float16") == (False, 16)
    assert coupled("znver4-avx512bf16") == (False, 16)
    assert coupled("x86-64-v4") == (False, 16)
    assert coupled("sapphirerapids") == (False, 16)
    # An infinity of the kernel times a subnormal input is one.
    config = LayerConfig(1, 4, 2, "same", dtype="bfloat16")
    exact = dot.decide(Workload.of(config, shape), target("znver4"), exact=True, always=True)
    assert exact is not None and not exact.coupled


@pytest.mark.parametrize(("name", "instructions"), [("znver4", True), ("x86-64-v4", False)])
def test_the_instruction_is_used_where_it_is(name: str, instructions: bool) -> None:
    work = Workload.of(LayerConfig(1, 4, 2, "same", dtype="bfloat16"), (1, 8, 8, 16, 64))
    tiling = Tiling("dots", 16, 1, 4, 8, pack=False, coupled=True)
    kernel = schedules.apply(lower(work, tiling)).kernel
    text = lowering.emit({"k": kernel}, target(name), lowering.effort(["dots"])).text("s")
    assert ("vdpbf16ps" in text) == instructions
    assert ("vfmadd" not in text) == instructions


def test_processors_that_share_weights_have_one_channel_a_lane() -> None:
    work = Workload.of(LayerConfig(1, 4, 2, "same", dtype="bfloat16"), (1, 16, 16, 16, 64))
    rows = several.decide_several([work], [target("znver4"), target("x86-64-v4")])
    assert [row[0].form for row in rows] == ["dots", "dots"]
    assert not any(row[0].coupled for row in rows)
    layouts = {lower(work, row[0]).layout for row in rows}
    assert len(layouts) == 1
    assert schedules.decide(work, target("znver4")).coupled


def test_a_bfloat16_layer_takes_fewer_cycles_than_one_of_float32() -> None:
    machine = dataclasses.replace(target("znver4"), l1_bytes=32 << 10, l2_bytes=1 << 20, cores=1)

    def cycles(dtype: str) -> float:
        work = Workload.of(LayerConfig(1, 4, 2, "same", dtype=dtype), (1, 32, 32, 32, 64))
        tiling = schedules.decide(work, machine, algorithm="auto")
        assert tiling.form == "dots"
        return dot.cycles(work, machine, tiling)

    assert cycles("bfloat16") < 0.6 * cycles("float32")


def test_an_output_is_made_once_and_whole_tiles_have_all_their_inputs() -> None:
    axes = [
        Axis(size, kernel, stride, dilation, lo, out)
        for size in (1, 2, 5, 33)
        for kernel in (1, 3, 4, 6)
        for stride, dilation in ((1, 1), (2, 1), (3, 1), (1, 2))
        for lo in (0, 1, 2)
        for out in (1, size, size * stride, size * stride + 3)
    ]
    for axis in axes:
        near = [one.reach for one in reaches(axis)]
        for width in (1, 3, 8):
            groups = [
                (tile.first + number * tile.groups + group, tile.whole)
                for tile in row_tiles(axis, width)
                for number in range(tile.count)
                for group in range(tile.groups)
            ]
            assert [group for group, _ in groups] == list(range(-(-axis.out // axis.stride)))
            for group in (group for group, whole in groups if whole):
                assert 0 <= group + min(near) <= group + max(near) < axis.size
                assert (group + 1) * axis.stride <= axis.out


def test_outputs_are_cut_into_powers_of_two() -> None:
    assert powers(16, 16) == [(0, 16)]
    assert powers(27, 8) == [(0, 8), (8, 8), (16, 8), (24, 2), (26, 1)]
    assert powers(0, 4) == []


def test_inputs_are_read_as_they_lie_and_asked_for_ahead() -> None:
    work = Workload.of(LayerConfig(1, 3, strides=2), (1, 6, 8, 64, 32))
    found = lower(work, Tiling("dots", 16, 1, 8, 4, pack=False))
    assert found.scratch_size == 0
    assert found.weights_nonfinite == "exact"
    assert "T.prefetch(" in found.kernel.script()
    copied = DotForm(work, Tiling("dots", 16, 1, 8, 4, pack=True))
    # Two taps of the depth and of the height.
    assert copied.ring_shape == (2, 5, 64, 32)


def test_half_width_is_widened_at_each_use_where_that_is_cheaper() -> None:
    config = LayerConfig(1, 4, strides=2, padding="same", dtype="float16")

    def copies(name: str, channels: int) -> bool:
        work = Workload.of(config, (1, 8, 8, 16, channels))
        tiling = dot.decide(work, target(name), always=True)
        assert tiling is not None
        assert (lower(work, tiling).scratch_size > 0) == tiling.pack
        return tiling.pack

    # Registers of 8 lanes are as wide as the units.
    assert [copies("znver4", 64), copies("znver4", 24)] == [False, True]
    # One register of channels: few steps a phase hide how long its first products wait.
    assert copies("znver4", 16)
    assert copies("x86-64-v4", 64)
    assert copies("x86-64-v3", 64)


def test_what_each_use_widens_is_widened_between_products() -> None:
    # Ten conversions before the products of a step took 3 % of the time of gan_g5.
    work = Workload.of(LayerConfig(1, 4, 2, "same", dtype="float16"), (1, 8, 8, 32, 64))
    form = DotForm(work, Tiling("dots", 16, 1, 8, 8, pack=False))
    assert form.by_input(form.products(8, None))
    # One group an input or two: as many weights as inputs.
    assert not form.by_input(form.products(1, None))
    wide = DotForm(dataclasses.replace(work, input_dtype="float32"), form.tiling)
    assert not wide.by_input(wide.products(8, None))
    copied = DotForm(work, Tiling("dots", 16, 1, 8, 8, pack=True))
    assert not copied.by_input(copied.products(8, None))

    kernel = schedules.apply(lower(work, form.tiling)).kernel
    text = lowering.emit({"k": kernel}, target("znver4"), lowering.effort(["dots"])).text("s")
    names = re.findall(r"\t(vcvtph2ps|vfmadd)", text)
    runs = [len(list(run)) for name, run in itertools.groupby(names) if name == "vcvtph2ps"]
    assert 0 < max(runs) < 6


def test_the_form_is_for_channels_that_fill_registers_and_rows_that_are_not_mixed() -> None:
    machine = target("x86-64-v4")
    config = LayerConfig(1, 3, strides=2, padding="same")

    def lanes(channels: int) -> int | None:
        tiling = dot.decide(Workload.of(config, (1, 8, 8, 8, channels)), machine, always=True)
        return tiling and tiling.vector

    assert [lanes(n) for n in (32, 48, 24, 12, 30, 3)] == [16, 16, 8, 4, None, None]
    mixed = LayerConfig(4, 3, strides=2, activation="softmax")
    assert dot.refused(Workload.of(mixed, (1, 4, 4, 8, 64)))


def test_sums_inputs_and_a_weight_are_registers() -> None:
    for filters, kernel, stride in ((1, 3, 2), (3, 4, 2), (1, 9, 2), (2, 3, 1), (4, 3, 3)):
        work = Workload.of(LayerConfig(filters, kernel, strides=stride), (1, 4, 4, 64, 32))
        for name in ("x86-64-v3", "x86-64-v4"):
            available = target(name).vector_registers
            for width in dot.widths(work, available):
                form = DotForm(work, Tiling("dots", 8, 1, width, 1))
                inputs = {one.reach for one in form.products(width, None)}
                assert width * stride * filters + len(inputs) + 1 <= available


@pytest.mark.parametrize("rows", [8, 15])
def test_sums_stay_in_registers(rows: int) -> None:
    # With its nine registers of channels unrolled, LLVM kept sums of tiles of 8 rows on the stack.
    machine = target("znver4")
    work = Workload.of(LayerConfig(5, (1, 2, 2), (1, 1, 2), "same"), (1, 16, 15, 38, 72))
    kernel = schedules.apply(lower(work, Tiling("dots", 8, 1, 2, rows, pack=False))).kernel
    code = lowering.emit({"k": kernel}, machine, lowering.effort(["dots"]))
    lines = code.text("s").splitlines()
    assert not [line for line in lines if "rsp" in line and "mm" in line]


def test_channels_first_take_it_where_products_are_one_a_cycle() -> None:
    machine = dataclasses.replace(target("znver4"), l1_bytes=32 << 10, l2_bytes=1 << 20, cores=2)
    config = LayerConfig(1, (2, 3, 3), (1, 2, 3), data_format="channels_first")
    work = Workload.of(config, (1, 48, 8, 13, 17))
    assert schedules.decide(work, machine).form == "dots"
    other = dataclasses.replace(target("x86-64-v4"), l2_bytes=2 << 20, cores=2)
    assert schedules.decide(work, other).form == "voxel"


def test_weights_from_the_second_level_cache_cost_time() -> None:
    # One voxel a register tile reads a weight for each product.
    machine = dataclasses.replace(target("znver4"), l1_bytes=32 << 10, l2_bytes=1 << 20, cores=2)

    def share(channels: int) -> float:
        config = LayerConfig(11, 2, strides=2, padding="same")
        work = Workload.of(config, (1, 10, 10, 11, channels))
        tiling = dot.decide(work, machine, always=True)
        assert tiling is not None and tiling.width == 1
        return dot.cycles(work, machine, tiling) / work.plan.flops

    assert share(256) > 1.25 * share(64)


def test_the_rule_takes_it_for_many_products_an_output_and_for_inputs_that_the_cache_holds() -> (
    None
):
    machine = dataclasses.replace(target("x86-64-v4"), l2_bytes=2 << 20, cores=2)

    def form(config: LayerConfig, shape: tuple[int, ...]) -> str:
        return schedules.decide(Workload.of(config, shape), machine).form

    assert form(LayerConfig(1, 9, strides=2, padding="same"), (1, 32, 32, 32, 32)) == "dots"
    assert form(LayerConfig(3, 3, strides=2, padding="same"), (1, 20, 30, 40, 64)) == "dots"
    # Nine rows of inputs that lie in the same sets of the first-level cache.
    aside = LayerConfig(1, 3, strides=(1, 2, 2), padding="same")
    assert form(aside, (1, 16, 128, 128, 96)) == "columns"


def test_shapes_of_one_layer_share_their_weights() -> None:
    config = LayerConfig(1, 9, strides=2, padding="same")
    works = [Workload.of(config, (1, d, 16, 32, 32)) for d in (8, 9)]
    tilings = schedules.decide_all(works, target("x86-64-v4"))
    assert {tiling.form for tiling in tilings} == {"dots"}
    made = [lower(work, tiling) for work, tiling in zip(works, tilings, strict=True)]
    assert made[0].layout == made[1].layout
