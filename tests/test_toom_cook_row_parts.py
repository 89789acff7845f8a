"""Channels first under Toom-Cook: tasks that have a part of a long row."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target
from turns import turns

from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook
from tvmconv.schedules.space import Space


def of(filters: int, kernel: Any, strides: Any, padding: str = "same", **more: Any) -> LayerConfig:
    return LayerConfig(filters, kernel, strides, padding, data_format="channels_first", **more)


def in_parts(config: LayerConfig, shape: tuple[int, ...], **changes: Any) -> Tiling:
    """A tiling of this processor with other decisions."""
    found = toom_cook.require(Workload.of(config, shape).joined(), target())
    return dataclasses.replace(
        found,
        **{"vector": 8, "registers": 1, "dots": 0, "across": False, "paired": False, **changes},
    )


#: Layer, input shape, register tile's width, tiles of a part: whole lines or not, of one or some
#: register tiles; a border on both sides, on one, on none; a last part of any length.
CASES = {
    "lines": (of(21, 4, 2, activation="relu"), (2, 9, 3, 2, 75), 4, 16),
    "no lines": (of(13, 4, 2), (1, 9, 2, 3, 50), 3, 3),
    "lines in the last part alone": (of(9, 3, 2), (1, 8, 3, 2, 48), 5, 5),
    "three phases": (of(19, (3, 4, 6), (1, 2, 3)), (1, 8, 2, 3, 41), 2, 4),
    "stride 1": (of(19, 3, 1), (1, 17, 2, 3, 77), 4, 8),
    "no border": (of(10, 3, 1, "valid"), (1, 9, 3, 3, 40), 4, 4),
    "crop": (of(10, 5, 2, output_padding=1), (1, 9, 2, 3, 40), 4, 8),
    "one more tile": (of(17, 4, 2), (3, 8, 2, 2, 33), 4, 4),
    "rows are one": (of(24, (2, 1, 1), 1, "valid"), (1, 16, 5, 9, 23), 8, 16),
}


@pytest.mark.parametrize("name", CASES)
def test_it_computes_the_layer(name: str) -> None:
    config, shape, width, part = CASES[name]
    outputs = (2, 1, 1) if name == "rows are one" else (2, 2, 2)
    tiling = in_parts(config, shape, width=width, outputs=outputs, block=(1, 1, part))
    form = ToomCookForm(Workload.of(config, shape).joined(), tiling)
    assert form.axes[2].blocks > 1 and form.waits
    rng = np.random.default_rng(len(name))
    x, taps, bias = (
        rng.integers(-3, 4, some).astype(np.float32)
        for some in (shape, *config.weight_shapes(shape[1]))
    )
    y = Kernel(config, shape, tiling=tiling)(x, taps, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, taps, bias))


@pytest.mark.parametrize(
    ("kernel", "strides", "block"),
    [(3, 1, (2, 1, 8)), (4, 2, (1, 2, 4)), ((3, 3, 1), 1, (1, 1, 4))],
)
def test_rows_of_the_block_before_are_moved(
    kernel: Any, strides: Any, block: tuple[int, int, int]
) -> None:
    config, shape = of(19, kernel, strides), (2, 17, 4, 13, 45)
    form = ToomCookForm(
        Workload.of(config, shape).joined(),
        in_parts(config, shape, width=4, outputs=(2, 2, 1 if kernel == (3, 3, 1) else 2),
                 block=block, compact=True),
    )  # fmt: skip
    assert form.axes[2].blocks > 1 and form.moves_rows
    rng = np.random.default_rng(7)
    x, taps, bias = (
        rng.integers(-3, 4, some).astype(np.float32)
        for some in (shape, *config.weight_shapes(shape[1]))
    )
    y = Kernel(config, shape, tiling=form.tiling)(x, taps, bias, rng)
    assert np.array_equal(y, conv3d_transpose(config, x, taps, bias))


@pytest.mark.parametrize(("policy", "paired"), turns(("float16", "mixed_bfloat16"), (False, True)))
def test_half_floats_and_pairs(policy: str, paired: bool) -> None:
    config = of(32, 4, 2, activation="tanh", dtype=policy)
    shape, rng = (1, 32, 3, 4, 70), np.random.default_rng(3)
    compute = numpy_dtype(config.compute_dtype)
    x, taps, bias = (
        (rng.standard_normal(some) / 8).astype(compute)
        for some in (shape, *config.weight_shapes(32))
    )
    tiling = in_parts(
        config, shape, vector=16, width=4, outputs=(2, 2, 2), block=(1, 2, 8), paired=paired
    )
    y = Kernel(config, shape, tiling=tiling)(x, taps, bias, rng).astype(np.float64)
    expected = conv3d_transpose(config, x, taps, bias).astype(np.float64)
    assert np.abs(y - expected).max() <= (2e-3 if policy == "float16" else 2e-2)


@pytest.mark.parametrize(
    ("size", "name", "parts"),
    [
        # By measurement on Zen 4 the first takes 0.88 of its time with whole rows.
        ((8, 16, 300), "znver4", True), ((4, 8, 512), "znver4", True),
        ((8, 16, 64), "znver4", False), ((8, 16, 300), "haswell", False),
        ((8, 16, 300), "sapphirerapids", False),
    ],
)  # fmt: skip
def test_long_rows_are_cut(size: tuple[int, int, int], name: str, parts: bool) -> None:
    work = Workload.of(of(32, 3, 2), (1, 32, *size))
    form = ToomCookForm(work, toom_cook.require(work, target(name)))
    assert (form.axes[2].blocks > 1) == parts
    if parts:
        assert form.offsets[-1] * 4 <= target(name).l2_bytes


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "parts"),
    [
        # By measurement on Zen 4 0.92 of the time with whole rows, and 1.05 where the outputs,
        # 100 MB, go to memory.
        ((64, 12, 16, 80), (3, 3, 1), 1, True), ((64, 48, 64, 128), 3, 2, False),
    ],
)  # fmt: skip
def test_shorter_rows_are_cut_where_a_cache_holds_the_outputs(
    shape: tuple[int, ...], kernel: Any, strides: int, parts: bool
) -> None:
    work = Workload.of(of(64 if strides == 1 else 32, kernel, strides), (1, *shape))
    form = ToomCookForm(work, toom_cook.require(work, target("znver4")))
    assert (form.axes[2].blocks > 1) == parts


def test_few_weights_leave_scratch_small() -> None:
    work = Workload.of(of(64, (3, 1, 1), 1), (1, 64, 24, 32, 40)).joined()
    form = ToomCookForm(work, toom_cook.require(work, target("znver4")))
    assert form.axes[2].blocks > 1
    # Blocks of twice the height fit, too, and would read the weights half as often.
    assert form.offsets[-1] * 4 < target("znver4").l2_bytes * 0.6


def test_no_axis_is_shared_for_nothing() -> None:
    """On Zen 4: with stride 1 an axis has one phase."""
    on = dataclasses.replace(target("znver4"), cores=1)
    work = Workload.of(of(48, 3, 1), (1, 48, 12, 15, 19)).joined()
    assert toom_cook.require(work, on).shared == 0


def test_tuning_begins_with_such_tasks() -> None:
    work, machine = Workload.of(of(32, 3, 2), (1, 32, 8, 16, 300)), target("znver4")
    tiling = toom_cook.require(work, machine)
    found = [
        one
        for one in Space.of(work, machine, "toom-cook").variants
        if one.values(tiling) is not None and one.fits(tiling)
    ]
    assert len(found) == 1


def test_rows_over_which_an_activation_mixes_are_whole() -> None:
    work = Workload.of(of(32, 3, 2, activation="softmax"), (1, 32, 8, 16, 300))
    form = ToomCookForm(work, toom_cook.require(work, target("znver4")))
    assert form.axes[2].blocks == 1
