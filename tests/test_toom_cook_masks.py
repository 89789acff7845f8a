"""Registers that filters do not fill, stored in part by the code of all others."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, whole_numbers
from turns import few

from tvmconv import schedules
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook
from tvmconv.schedules.several import decide_several

#: A tile reads over the end of every axis, and stores less than it makes.
SHAPE = (None, 5, 7, 9, 24)


def tiling(registers: int, **more: Any) -> Tiling:
    base = Tiling("toom-cook", 16, registers, 3, 1, outputs=(2, 2, 2), block=(1, 2, 5), masked=True)
    return dataclasses.replace(base, **more)


ERRORS = {"float32": 1e-4, "float16": 1e-3, "bfloat16": 1e-2}
PAIRS = {"paired": True, "width": 9}


CASES = [
    (31, tiling(2)),
    (33, tiling(2, dots=1)),
    (47, tiling(1, outputs=(2, 4, 3), block=(2, 1, 3))),
    (37, tiling(2, **PAIRS, shared=0)),
    (5, tiling(1)),
    (37, tiling(3, shared=3)),
    (51, tiling(2, dots=3, shared=0)),
    (33, tiling(2, outputs=(2, 4, 4), block=(1, 1, 5), dots=1)),
    (31, tiling(1, **PAIRS)),
    (33, tiling(1, **PAIRS, dots=1)),
    (36, tiling(2, **PAIRS, dots=4, shared=3)),
    (37, tiling(3, last=8)),
    (21, tiling(1, last=8, shared=3)),
    (40, tiling(2, last=8, outputs=(2, 4, 4), block=(1, 1, 5))),
]


@pytest.mark.parametrize(
    ("filters", "some", "dtype", "activation"),
    [
        *few(((*case, "float32", None) for case in CASES), (0, 1, 2, 3, 4, 5, 6, 9, 11, 13)),
        *few(((*case, "float16", "relu") for case in CASES[:4]), (0, 2)),
        *few(((*case, "bfloat16", "relu") for case in CASES[:4]), (1, 3)),
        *few(((*case, "float32", "tanh") for case in CASES[:3]), (0,)),
    ],
)
def test_nothing_behind_the_last_filter(
    filters: int, some: Tiling, dtype: str, activation: str | None
) -> None:
    strides = 2 if filters == 5 else (1, 2, 2)  # eight phases are much code
    config = LayerConfig(filters, 3, strides=strides, activation=activation, dtype=dtype)
    shape = (2, *SHAPE[1:])
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(filters))
    if dtype != "float32":
        x, kernel = np.sign(x), np.sign(kernel)
    # Parts of the tiles in any order: what one writes too much would stay.
    y = Kernel(config, SHAPE, tiling=some)(x, kernel, bias, np.random.default_rng(1))
    expected = conv3d_transpose(config, x, kernel, bias)
    if activation == "tanh" or max(some.outputs) > 3:
        error = np.abs(y.astype(np.float64) - expected).max()
        assert error <= ERRORS[dtype] * np.abs(expected).max()
    else:
        assert np.array_equal(y, expected.astype(y.dtype))


def test_without_registers_of_so_many_lanes() -> None:
    config, shape = LayerConfig(21, 3), (1, 5, 6, 7, 24)
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(3))
    some = tiling(2, vector=8, outputs=(2, 2, 2), block=(1, 1, 5))
    y = Kernel(config, shape, tiling=some, machine="x86-64-v2")(x, kernel, bias)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


@pytest.mark.parametrize(
    ("filters", "channels", "some"),
    [(21, 24, tiling(2, block=(1, 1, 5))), (35, 32, tiling(2, dots=3, **PAIRS, block=(1, 1, 5)))],
)
def test_rows_in_scratch_have_no_such_lanes(filters: int, channels: int, some: Tiling) -> None:
    config = LayerConfig(filters, 3, data_format="channels_first")
    shape = (1, channels, 5, 6, 7)
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(4))
    y = Kernel(config, shape, tiling=some)(x, kernel, bias)
    assert np.array_equal(y, conv3d_transpose(config, x, kernel, bias))


#: Long and short ones, and one that needs rows in scratch.
ACTIVATIONS = ["gelu", None, "relu", "softplus", "tanh", "elu", "silu", "softmax"]


@pytest.mark.parametrize(
    ("filters", "activation"),
    list(zip((33, 35, 37, 40, 47, 65, 67, 72), ACTIVATIONS, strict=True)),
)
def test_last_tiles_of_filters_beyond_a_register(filters: int, activation: str | None) -> None:
    """Products that the last tile of an axis does not need are zero in all lanes that are read."""
    dtype = ("float32", "float16", "bfloat16")[filters % 3]
    first = filters % 4 == 3
    shape = (1, 16, 5, 6, 7) if first else (1, 5, 6, 7, 16)
    config = LayerConfig(
        filters, 3, padding="same", activation=activation, dtype=dtype,
        data_format="channels_first" if first else "channels_last",
    )  # fmt: skip
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(filters))
    x, kernel = np.sign(x) / 2, np.sign(kernel) / 8
    work = Workload.of(config, shape).joined()
    rest = filters % 16
    some = Tiling(
        "toom-cook", 16, 3, 2, 1, outputs=(2, 4, 4), block=(2, 2, 2), shared=3,
        masked=toom_cook.masks(work, target("znver4")),
    )  # fmt: skip
    assert ToomCookForm(work, some).axes[1].is_short
    found = [dataclasses.replace(some, dots=rest if rest < 5 else 0)]
    if rest < 9:
        found.append(dataclasses.replace(some, last=8))
    expected = conv3d_transpose(config, x, kernel, bias).astype(np.float64)
    for one in found:
        y = Kernel(config, (None, *shape[1:]), tiling=one)(x, kernel, bias)
        error = np.abs(y.astype(np.float64) - expected).max()
        assert error <= ERRORS[dtype] * np.abs(expected).max()


def decided(filters: int, name: str = "znver4", **config: Any) -> Tiling:
    made = LayerConfig(filters, 3, padding="same", **config)
    shape = (1, 16, 32, 32, 32)
    if made.data_format == "channels_first":
        shape = (1, 32, 16, 32, 32)
    work = Workload.of(made, shape).joined()
    return schedules.decide(work, target(name), algorithm="toom-cook")


def test_which_layers_take_it() -> None:
    assert decided(31).masked
    assert decided(37).masked
    assert not decided(32).masked
    assert not decided(31, data_format="channels_first").masked
    assert not decided(31, activation="softmax").masked
    assert not decided(31, "haswell").masked
    assert not decided(31, "x86-64-v4").masked


def test_few_filters_stand_beside_those_of_a_block() -> None:
    """Their lanes are input channels, where those of a block are pairs, too."""
    work = Workload.of(LayerConfig(65, 3, strides=2, padding="same"), (1, 12, 16, 32, 64)).joined()
    some = toom_cook.require(work, target("znver4"))
    assert (some.dots, some.paired, some.masked) == (1, True, True)
    # Without pairs code of their own is a little faster, where it is small.
    small = decided(33)
    assert (small.dots, small.masked) == (1, False)


def test_processors_that_share_weights_do_without() -> None:
    config = LayerConfig(31, 5, strides=2, padding="same")
    work = Workload.of(config, (1, 16, 16, 16, 32))
    found = decide_several([work], [target("znver4"), target("haswell")], algorithm="toom-cook")
    assert not any(one.masked for row in found for one in row)


def test_partial_registers_take_long_tiles() -> None:
    """The code of one transform back leaves room for them, as where filters fill registers."""
    outputs = []
    for filters in (31, 32, 33, 37):
        config = LayerConfig(filters, 5, strides=2, padding="same")
        work = Workload.of(config, (1, 16, 16, 16, 32)).joined()
        outputs.append(toom_cook.require(work, target("znver4")).outputs)
    assert outputs == [(2, 4, 4)] * 4


def test_the_last_register_is_half_a_one_where_that_is_enough() -> None:
    """On Zen 4 it takes half the time."""
    for filters, last in ((36, 8), (37, 8), (40, 8), (41, 0), (47, 0)):
        config = LayerConfig(filters, 5, strides=2, padding="same")
        work = Workload.of(config, (1, 16, 16, 16, 32)).joined()
        some = toom_cook.require(work, target("znver4"))
        assert (some.last, some.masked) == (last, True)
