"""The pair form for channels first: layers, rows of all lengths, NaN and infinities, its rule."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, whole_numbers
from turns import few, turns

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.pair_voxels import PairVoxelForm
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import pair
from tvmconv.schedules.space import Space

_TWO: dict[str, Any] = {"kernel_size": 2, "strides": 2}
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2, 2, 2": ({"filters": 24, **_TWO}, (2, 24, 3, 4, 5)),
    "flat depth": (
        {"filters": 16, "kernel_size": (1, 2, 2), "strides": (1, 2, 2)}, (1, 32, 3, 5, 7),
    ),
    "flat height": (
        {"filters": 5, "kernel_size": (2, 1, 2), "strides": (2, 1, 2)}, (2, 24, 3, 5, 7),
    ),
    "all flat": ({"filters": 33, "kernel_size": 1}, (1, 25, 3, 2, 7)),
    "3, 1, 2": ({"filters": 13, "kernel_size": (3, 1, 2), "strides": (3, 1, 2)}, (1, 31, 2, 3, 9)),
    "2, 2, 3": ({"filters": 7, "kernel_size": (2, 2, 3), "strides": (2, 2, 3)}, (1, 31, 2, 3, 9)),
    "2, 1, 5": ({"filters": 2, "kernel_size": (2, 1, 5), "strides": (2, 1, 5)}, (1, 31, 2, 3, 9)),
    "few channels": ({"filters": 16, **_TWO}, (1, 3, 3, 2, 5)),
    "one channel": ({"filters": 16, **_TWO}, (1, 1, 3, 2, 5)),
    "half": ({"filters": 17, **_TWO, "dtype": "float16"}, (2, 26, 2, 3, 9)),
    "brain": ({"filters": 16, **_TWO, "dtype": "mixed_bfloat16"}, (1, 29, 2, 3, 9)),
    "half, whole rows": ({"filters": 8, **_TWO, "dtype": "float16"}, (1, 26, 1, 2, 16)),
    "no bias": ({"filters": 8, **_TWO, "use_bias": False}, (1, 40, 3, 3, 3)),
    "many channels": ({"filters": 8, **_TWO}, (1, 131, 2, 3, 3)),
}  # fmt: skip
TILINGS = (
    Tiling("pairs", 16, 8, 1, 2, stretch=100),
    Tiling("pairs", 16, 5, 1, 1, splits=2, stretch=3),
    Tiling("pairs", 4, 3, 1, 5, stretch=2),
)


def of(filters: int, kernel: Any = 2, **changes: Any) -> LayerConfig:
    """A layer with kernel = stride, channels first."""
    return LayerConfig(filters, kernel, strides=kernel, data_format="channels_first", **changes)


def check(config: LayerConfig, shape: tuple[int, ...], tiling: Tiling) -> None:
    """The tiling gives the reference's output."""
    rng = np.random.default_rng(3)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y.astype(np.float64), expected)


@pytest.mark.parametrize(("name", "tiling"), turns([*LAYERS], TILINGS))
def test_it_computes_the_layer(name: str, tiling: Tiling) -> None:
    arguments, shape = LAYERS[name]
    config = LayerConfig(**{"activation": "relu", "data_format": "channels_first", **arguments})
    check(config, shape, tiling)


@pytest.mark.parametrize(
    ("width", "tiling"), turns((1, 2, 3, 4, 6, 8, 11, 15, 16, 17, 20, 32, 35), TILINGS)
)
def test_rows_of_any_length(width: int, tiling: Tiling) -> None:
    check(of(6), (1, 24, 2, -(-16 // (2 * width)) + 1, width), tiling)


def normal(config: LayerConfig, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    kernel_shape = Workload.of(config, shape).plan.kernel_shape
    kernel = rng.normal(size=kernel_shape) / np.sqrt(kernel_shape[-1])
    numbers = (rng.normal(size=shape), kernel, rng.normal(size=config.filters))
    return tuple(n.astype(np.float32) for n in numbers)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_long_activation_is_applied(dtype: str) -> None:
    config, shape = of(24, activation="gelu", dtype=dtype), (1, 40, 3, 4, 5)
    x, kernel, bias = normal(config, shape, 1)
    expected = conv3d_transpose(config, x, kernel, bias)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for tiling in TILINGS:
        y = Kernel(config, shape, tiling=tiling)(x, kernel, bias)
        np.testing.assert_allclose(y.astype(np.float64), expected, atol=tolerance)


def test_inputs_and_filters_of_any_size_keep_their_digits() -> None:
    config, shape = of(16), (1, 48, 1, 1, 16)
    x, kernel, bias = normal(config, shape, 2)
    x *= np.logspace(-30, 30, 16).astype(np.float32)
    kernel *= np.logspace(-6, 6, 16).astype(np.float32)[:, None]
    bias[:] = 0
    y = Kernel(config, shape, tiling=TILINGS[0])(x, kernel, bias)
    expected = conv3d_transpose(config, x, kernel, bias)
    # Of each voxel and filter: the taps have one size.
    size = np.abs(expected).reshape(1, 16, 2, 2, 16, 2).max(axis=(2, 3, 5), keepdims=True)
    assert np.all(np.abs(y - expected).reshape(1, 16, 2, 2, 16, 2) <= 2e-6 * size)


def test_nothing_is_exactly_the_bias() -> None:
    config, shape = of(16), (1, 29, 2, 3, 4)
    x, kernel, bias = normal(config, shape, 3)
    x[0, :, 1, 1, 2] = 0
    kernel[..., 5, :] = 0
    y = Kernel(config, shape, tiling=TILINGS[0])(x, kernel, bias)
    empty = y[0, :, 2:4, 2:4, 4:6].reshape(16, 8)
    np.testing.assert_array_equal(empty, np.broadcast_to(bias[:, None], (16, 8)))
    np.testing.assert_array_equal(y[:, 5], np.full_like(y[:, 5], bias[5]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_wild_input_stays_in_the_outputs_of_its_voxel(value: float) -> None:
    config, shape = of(16), (1, 29, 2, 3, 4)
    x, kernel, bias = normal(config, shape, 4)
    made = Kernel(config, shape, tiling=TILINGS[0])
    before = made(x, kernel, bias)
    for channel in (0, 8, 28):
        wild = x.copy()
        wild[0, channel, 1, 2, 3] = value
        y = made(wild, kernel, bias)
        inside = np.zeros(y.shape, bool)
        inside[0, :, 2:4, 4:6, 6:8] = True
        np.testing.assert_array_equal(y[~inside], before[~inside])
        if np.isfinite(value):
            expected = conv3d_transpose(config, wild, kernel, bias)[inside]
            np.testing.assert_allclose(y[inside], expected, rtol=1e-5)
        else:
            assert not np.isfinite(y[inside]).any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_wild_weight_stays_in_the_outputs_of_its_filter_and_tap(value: float) -> None:
    config, shape = of(16), (1, 29, 2, 3, 4)
    x, kernel, bias = normal(config, shape, 5)
    made = Kernel(config, shape, tiling=TILINGS[0])
    before = made(x, kernel, bias)
    kernel[1, 0, 1, 3, 11] = value
    y = made(x, kernel, bias)
    inside = np.zeros(y.shape, bool)
    inside[:, 3, 1::2, 0::2, 1::2] = True
    assert not np.isfinite(y[inside]).any()
    np.testing.assert_array_equal(y[~inside], before[~inside])


@pytest.mark.parametrize("seed", few(range(12), range(6)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    rng = random.Random(seed)
    config = of(rng.randint(8, 40), tuple(rng.choice((1, 2, 2, 3)) for _ in range(3)))
    shape = (1, rng.randint(24, 300), rng.randint(3, 5), *(rng.randint(3, 6) for _ in range(2)))
    x, kernel, bias = normal(config, shape, seed)
    # As after nothing, a rectifier, or a sigmoid.
    x = (x, np.maximum(x, 0), 1 / (1 + np.exp(-x)))[seed % 3].astype(np.float32)
    expected = conv3d_transpose(config, x, kernel, bias)
    plain = schedules.decide(Workload.of(config, shape), target(), columns=False)
    tilings = Tiling("pairs", 16, rng.randint(3, 8), 1, 4, stretch=8), plain
    ours, direct = (
        float(np.max(np.abs(Kernel(config, shape, tiling=one)(x, kernel, bias) - expected)))
        for one in tilings
    )
    assert ours <= 2 * direct


def on(name: str, cores: int = 2) -> Any:
    return dataclasses.replace(target(name), cores=cores)


@pytest.mark.parametrize(
    ("filters", "kernel", "size", "form"),
    [
        (48, (1, 2, 1), (52, 38, 29), "pairs"),
        (32, (1, 1, 2), (33, 42, 58), "pairs"),
        (128, (1, 1, 3), (31, 55, 6), "toom-cook"),
    ],
)
def test_rows_of_the_phase_form_cost_more_to_write(
    filters: int, kernel: tuple[int, int, int], size: tuple[int, int, int], form: str
) -> None:
    """On Zen 4, 0.61, 0.68 and 0.82 of the phase form's time; by products alone it was cheaper."""
    strides = tuple(min(2, k) for k in kernel)
    config = LayerConfig(filters, kernel, strides, "valid", data_format="channels_first")
    channels = {48: 64, 32: 48, 128: 128}[filters]
    work = Workload.of(config, (1, channels, *size))
    assert schedules.decide(work, on("znver4", 1), algorithm="auto").form == form


def test_the_rule_takes_channels_first_where_adders_stand_apart() -> None:
    work = Workload.of(of(64), (1, 128, 8, 8, 8)).joined()
    assert schedules.decide(work, on("znver4"), algorithm="auto").form == "pairs"
    assert schedules.decide(work, on("znver4")).form == "phase"
    for other in ("znver3", "sapphirerapids", "x86-64-v4", "cortex-a76"):
        assert schedules.decide(work, on(other), algorithm="auto").form != "pairs"
    for config, shape, reason in (
        (of(64), (1, 16, 8, 8, 8), "24 input channels"),
        (of(64), (1, 128, 1, 3, 5), "16 voxels"),
        (of(3), (1, 128, 8, 8, 8), "8 filters"),
        (of(8, (1, 1, 17)), (1, 128, 2, 2, 8), "at most 16"),
    ):
        work = Workload.of(config, shape).joined()
        assert schedules.decide(work, on("znver4"), algorithm="auto").form != "pairs"
        with pytest.raises(ConfigError, match=reason):
            schedules.decide(work, on("znver4"), algorithm="pairs")


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("size", [3, 4, 13, 40])
@pytest.mark.parametrize("channels", [24, 64, 320, 1000])
def test_every_panel_and_voxel_belongs_to_one_task(cores: int, size: int, channels: int) -> None:
    work = Workload.of(of(channels), (1, channels, size, size, size))
    tiling = pair.require(work.joined(), on("znver4", cores))
    form = PairVoxelForm(work.joined(), tiling)
    share = -(-form.panels // tiling.splits)
    assert (tiling.splits - 1) * share < form.panels <= tiling.splits * share
    assert 1 <= tiling.stretch <= share
    assert 0 <= sum(tiles * width for tiles, width in form.runs) - size**3 < 16
    assert sum(blocks * filters for blocks, filters in form.blocks) == channels
    assert form.chunks * tiling.splits >= min(2 * cores, form.panels // 4)
    (variant,) = (
        one for one in Space.of(work, on("znver4", cores), "pairs").variants
        if one.base.form == "pairs"
    )  # fmt: skip
    assert variant.values(tiling) is not None and variant.fits(tiling)


def test_shapes_share_one_layout_of_weights() -> None:
    works = [Workload.of(of(40), (1, 128, *size)) for size in ((8, 8, 8), (3, 4, 5), (2, 16, 16))]
    tilings = schedules.decide_all(works, on("znver4"), algorithm="auto")
    assert [one.form for one in tilings] == ["pairs"] * 3
    layouts = {str(lower(w, t).layout) for w, t in zip(works, tilings, strict=True)}
    assert len(layouts) == 1
