"""Products of pairs of channels in the Toom-Cook form: values, errors, scales, which layers."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from cook_layers import FLOOR
from kernels import Kernel, target
from turns import few, turns

from tvmconv import compute, schedules
from tvmconv.compute import point_pairs
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import AxisTiles, tile_noise, tile_outputs
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook, toom_cook_pair, toom_cook_space
from tvmconv.schedules.several import decide_several


def tiling_of(work: Workload, outputs: tuple[int, int, int], width: int = 8, **more: Any) -> Tiling:
    """Pairs, whole rows a task."""
    tiles = AxisTiles(work.plan.axes[2], outputs[2], 1, True).tiles
    base = Tiling("toom-cook", 16, 1, width, 1, outputs=outputs, block=(1, 2, tiles), paired=True)
    return dataclasses.replace(base, **more)


def drawn(
    config: LayerConfig, shape: tuple[int, ...], seed: int, *, whole: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)

    def draw(some: tuple[int, ...]) -> np.ndarray:
        values = rng.integers(-3, 4, some) if whole else rng.standard_normal(some)
        return values.astype(numpy_dtype(config.compute_dtype))

    kernel = draw(config.kernel_shape(shape[config.channel_axis]))
    return draw(shape), kernel, draw((config.filters,))


@pytest.mark.parametrize(
    ("channels", "data_format", "dtype"),
    turns(
        (24, 31, 40, 45),
        (
            ("channels_last", "float32"), ("channels_first", "float32"),
            ("channels_last", "float16"),
        ),
    ),
)  # fmt: skip
def test_whole_numbers_are_exact(channels: int, data_format: str, dtype: str) -> None:
    strides = 2 if channels == 24 else (1, 2, 2)  # eight phases are much code
    config = LayerConfig(
        37, (3, 4, 5), strides, "same", activation="relu", data_format=data_format, dtype=dtype
    )
    sizes = (5, 5, 17)
    last = data_format == "channels_last"
    shape = (2, *sizes, channels) if last else (2, channels, *sizes)
    x, kernel, bias = drawn(config, shape, channels, whole=True)
    if dtype == "float16":
        x, kernel = np.sign(x), np.sign(kernel)
    work = Workload.of(config, shape)
    tiling = tiling_of(
        work, (2, 3, 2), 5 + channels % 4, registers=1 + channels % 3, shared=channels % 4
    )
    expected = conv3d_transpose(config, x, kernel, bias)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, np.random.default_rng(1))
    assert np.array_equal(y, expected.astype(y.dtype))


@pytest.mark.parametrize("vector", [4, 8])
def test_shorter_registers(vector: int) -> None:
    config, shape = LayerConfig(20, 3, 1, "valid"), (1, 5, 6, 9, 26)
    x, kernel, bias = drawn(config, shape, vector, whole=True)
    tiling = tiling_of(Workload.of(config, shape), (2, 2, 2), 3, vector=vector, registers=2)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, np.random.default_rng(2))
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


@pytest.mark.parametrize("seed", few(range(24), range(5)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    rng = random.Random(seed)
    while True:
        strides = rng.choice(((2, 2, 2), (1, 1, 1), (1, 2, 2)))
        kernel_size = tuple(rng.choice((s + 1, 2 * s, 2 * s + 1, 3 * s)) for s in strides)
        config = LayerConfig(rng.choice((16, 32)), kernel_size, strides, "same")
        shape = (1, *(rng.randint(5, 8) for _ in range(3)), rng.choice((24, 32, 48, 64)))
        work = Workload.of(config, shape)
        axes = work.plan.axes
        choices = [
            some
            for some in tile_outputs(axes, work.plan.in_channels, config.filters)
            if toom_cook_pair.pair_widths(work, target("znver4"), some, 8)
        ]
        if choices and toom_cook.refusal(work) is None and work.plan.flops < 1e8:
            break
    outputs = max(choices, key=lambda some: tile_noise(axes, some))
    x, kernel, bias = drawn(config, shape, seed)
    x = np.maximum(x, 0) if seed % 3 == 0 else x
    expected = conv3d_transpose(config, x, kernel, bias)
    ours, direct = (
        np.max(np.abs(Kernel(config, shape, tiling=one, ships=ships)(x, kernel, bias) - expected))
        / np.max(np.abs(expected))
        for one, ships in (
            (tiling_of(work, outputs, shared=seed % 4), True),
            (schedules.decide(work, target(), columns=False), False),
        )
    )
    assert ours <= max(2 * direct, FLOOR)


def test_inputs_and_filters_of_every_size() -> None:
    config, shape = LayerConfig(16, 4, 2, "same", use_bias=False), (1, 4, 4, 24, 32)
    x, kernel, _ = drawn(config, shape, 3)
    sizes = 10.0 ** np.repeat([-20, 0, 20], 8)
    x *= sizes[:, None].astype(np.float32)
    filters = 10.0 ** np.arange(-8, 8).astype(np.float32)
    kernel *= filters[:, None]
    tiling = tiling_of(Workload.of(config, shape), (2, 2, 2))
    y = Kernel(config, shape, tiling=tiling)(x, kernel, None)
    error = np.abs(y - conv3d_transpose(config, x, kernel, None)) / filters
    # Not the tiles that read inputs of two sizes.
    for begin, size in ((0, 1e-20), (20, 1.0), (36, 1e20)):
        assert np.max(error[:, :, :, begin : begin + 8]) < 1e-4 * size
    assert np.max(error[:, :, :, 40:]) < 1e-4 * 1e20


def test_nothing_in_nothing_out() -> None:
    config, shape = LayerConfig(16, 4, 2, "same"), (1, 4, 4, 8, 24)
    x, kernel, bias = drawn(config, shape, 4)
    kernel[:, :, :, 3] = 0
    y = Kernel(config, shape, tiling=tiling_of(Workload.of(config, shape), (2, 2, 2), 4))(
        np.zeros_like(x), kernel, bias
    )
    assert (y == bias).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("shared", [0, 3])
def test_values_without_end_stay_inside_the_tiles_that_read_them(value: float, shared: int) -> None:
    config, shape = LayerConfig(16, 4, 2, "same"), (1, 6, 6, 16, 24)
    x, kernel, bias = drawn(config, shape, 5)
    kernel = np.abs(kernel) + np.float32(0.1)
    run = Kernel(config, shape, tiling=tiling_of(Workload.of(config, shape), (2, 2, 2),
                                                 shared=shared))  # fmt: skip
    clean = run(x, kernel, bias)
    for at in ((0, 0, 0, 0, 3), (0, 2, 3, 7, 20)):
        wrong = x.copy()
        wrong[at] = value
        found = run(wrong, kernel, bias)
        reached = (np.abs(conv3d_transpose(config, np.where(wrong == x, 0, 1).astype(np.float32),
                                           kernel, None)) > 0).any(-1)[0]  # fmt: skip
        touched = (found != clean).any(-1)[0]
        cells = set(map(tuple, np.argwhere(reached) // 4))
        assert touched[reached].all()
        assert set(map(tuple, np.argwhere(touched) // 4)) <= cells
        if np.isfinite(value):
            continue
        # Tile, output and phase, axis by axis: all outputs of a phase, or none.
        lost = np.isnan(found).reshape(3, 2, 2, 3, 2, 2, 8, 2, 2, 16)
        lost = lost.transpose(0, 3, 6, 2, 5, 8, 1, 4, 7, 9).reshape(3 * 3 * 8, 8, -1)
        assert (lost.all(-1) == lost.any(-1)).all()
        assert np.isnan(found[0][reached]).all()


def test_a_filter_that_is_not_finite_is_not_a_number() -> None:
    config, shape = LayerConfig(16, 4, 2, "same"), (1, 4, 4, 8, 24)
    x, kernel, bias = drawn(config, shape, 6)
    kernel[1, 2, 3, 5, 7] = np.inf
    form = Kernel(config, shape, tiling=tiling_of(Workload.of(config, shape), (2, 2, 2), 4))
    y = form.run(x, form.packed(kernel, bias))
    assert np.isnan(y[..., 5]).all()
    assert np.isfinite(np.delete(y, 5, -1)).all()


def test_sums_of_inputs_and_taps_are_of_one_size() -> None:
    """Beside each other, by the model: what is left is half of a power of two and the means'."""
    for kernel, outputs in ((4, 4), (3, 4), (5, 2), (6, 3)):
        work = Workload.of(LayerConfig(16, kernel, 2, "same"), (1, 16, 16, 16, 32))
        tiling = Tiling("toom-cook", 16, 1, 8, 1, outputs=(outputs,) * 3, paired=True)
        form = ToomCookForm(work, tiling)
        inputs, taps = (math.log2(some) for some in point_pairs.growth(form.axes))
        assert abs(inputs - taps) < 1.5
        for one in form.combinations:
            assert point_pairs.balanced(form.axes, one.classes).shape == tuple(
                len(group.scheme.weights) for group in one.classes
            )


def test_which_layers_take_pairs() -> None:
    def chosen(machine: str, filters: int, kernel: int, stride: int, shape: Any) -> Tiling:
        work = Workload.of(LayerConfig(filters, kernel, stride, "same"), shape)
        return schedules.decide(work, target(machine), algorithm="auto")

    gains = (64, 4, 2, (1, 16, 16, 16, 128)), (64, 3, 2, (1, 12, 16, 32, 64))
    for layer in gains:
        tiling = chosen("znver4", *layer)
        assert tiling.paired
        assert tiling.form == "toom-cook"
        assert 8 <= tiling.width <= 20
        assert not chosen("znver5", *layer).paired
        assert not chosen("znver3", *layer).paired
    # A row of 6 or 7 tiles is one register tile.
    for size, tiles in ((13, 7), (11, 6)):
        tiling = chosen("znver4", 64, 4, 2, (1, size, size, size, 128))
        assert (tiling.paired, tiling.width) == (True, tiles)
    # Few channels, few tiles in a row.
    assert not chosen("znver4", 64, 4, 2, (1, 16, 16, 16, 20)).paired
    assert not chosen("znver4", 64, 4, 2, (1, 16, 16, 6, 128)).paired


def test_several_processors_share_weights_without_pairs() -> None:
    work = Workload.of(LayerConfig(64, 4, 2, "same"), (1, 16, 16, 16, 128))
    rows = decide_several([work], [target("znver4"), target("znver3")], algorithm="auto")
    assert not any(tiling.paired for row in rows for tiling in row)


def test_shapes_of_a_layer_share_pairs() -> None:
    works = [
        Workload.of(LayerConfig(64, 4, 2, "same"), (1, 16, 16, size, 128)) for size in (16, 24)
    ]
    tilings = schedules.decide_all(works, target("znver4"), algorithm="auto")
    assert all(tiling.paired for tiling in tilings)
    layouts = [compute.layout(work, tiling) for work, tiling in zip(works, tilings, strict=True)]
    assert layouts[0] == layouts[1]
    plain = dataclasses.replace(tilings[0], paired=False)
    assert compute.layout(works[0], plain) != layouts[0]


def test_tuning_tries_pairs_where_the_processor_has_adders() -> None:
    work = Workload.of(LayerConfig(64, 4, 2, "same"), (1, 16, 16, 16, 128))
    for machine, has in (("znver4", True), ("znver5", False)):
        default = schedules.decide(work, target(machine), algorithm="auto")
        found = toom_cook_space.variants(work, target(machine), default)
        tilings = [variant.base for variant in found]
        assert any(tiling.paired for tiling in tilings) == has
        assert any(not tiling.paired for tiling in tilings)
        same = [t for t in tilings if t.structure == default.structure and t.width == default.width]
        assert same
        for paired, group in itertools.groupby(tilings, key=lambda tiling: tiling.paired):
            assert not paired or all(6 <= tiling.width <= 20 for tiling in group)


def test_a_scheme_of_another_shape_has_a_noise() -> None:
    """Weights of a large shape fix schemes that a small one would not choose."""
    config = LayerConfig(32, 4, 2, "same")
    large, small = (Workload.of(config, (1, *size, 32)) for size in ((8, 8, 8), (6, 5, 7)))
    outputs = (2, 4, 2)
    assert outputs in tile_outputs(large.plan.axes, 32, 32)
    assert outputs not in tile_outputs(small.plan.axes, 32, 32)
    assert tile_noise(large.plan.axes, outputs) == tile_noise(small.plan.axes, outputs)
