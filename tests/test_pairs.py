"""The pair form: layers, scales, NaN and infinities, errors, its rule, and the code of a step."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, runs_here, target, whole_numbers
from turns import few, turns

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.pairing import Pairing, scales
from tvmconv.compute.pairs import PairForm, serves
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.errors import ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import several
from tvmconv.schedules.cpu import pair
from tvmconv.schedules.space import Space

LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2, 2, 2": ({"filters": 24, "kernel_size": 2, "strides": 2}, (2, 3, 4, 5, 24)),
    "flat depth": (
        {"filters": 16, "kernel_size": (1, 2, 2), "strides": (1, 2, 2)}, (1, 3, 5, 7, 32),
    ),
    "all flat": ({"filters": 33, "kernel_size": 1}, (1, 3, 2, 7, 25)),
    "3, 1, 2": ({"filters": 13, "kernel_size": (3, 1, 2), "strides": (3, 1, 2)}, (1, 2, 3, 9, 31)),
    "few channels": ({"filters": 16, "kernel_size": 2, "strides": 2}, (1, 3, 2, 5, 3)),
    "one channel": ({"filters": 16, "kernel_size": 2, "strides": 2}, (1, 3, 2, 5, 1)),
    "half": ({"filters": 17, "kernel_size": 2, "strides": 2, "dtype": "float16"}, (1, 2, 3, 9, 26)),
    "brain": (
        {"filters": 16, "kernel_size": 2, "strides": 2, "dtype": "mixed_bfloat16"},
        (1, 2, 3, 9, 29),
    ),
    "no bias": (
        {"filters": 8, "kernel_size": 2, "strides": 2, "use_bias": False}, (1, 3, 3, 3, 40),
    ),
    "many channels": ({"filters": 8, "kernel_size": 2, "strides": 2}, (1, 2, 2, 3, 131)),
}  # fmt: skip
TILINGS = (
    Tiling("pairs", 16, 1, 16, 2, stretch=100),
    Tiling("pairs", 16, 1, 7, 1, splits=2, stretch=3),
    Tiling("pairs", 4, 1, 3, 5, stretch=2),
)


@pytest.mark.parametrize(("name", "tiling"), turns([*LAYERS], TILINGS))
def test_it_computes_the_layer(name: str, tiling: Tiling) -> None:
    arguments, shape = LAYERS[name]
    config = LayerConfig(**{"activation": "relu", **arguments})
    rng = np.random.default_rng(3)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    np.testing.assert_array_equal(y.astype(np.float64), expected)


def made(config: LayerConfig, shape: tuple[int, ...], tiling: Tiling = TILINGS[0]) -> Kernel:
    return Kernel(config, shape, tiling=tiling)


def normal(config: LayerConfig, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    kernel_shape = Workload.of(config, shape).plan.kernel_shape
    kernel = rng.normal(size=kernel_shape) / np.sqrt(kernel_shape[-1])
    numbers = (rng.normal(size=shape), kernel, rng.normal(size=config.filters))
    return tuple(n.astype(np.float32) for n in numbers)


def test_a_long_activation_is_applied() -> None:
    config = LayerConfig(24, 2, strides=2, activation="gelu")
    shape = (1, 3, 4, 5, 40)
    x, kernel, bias = normal(config, shape, 1)
    expected = conv3d_transpose(config, x, kernel, bias)
    np.testing.assert_allclose(made(config, shape)(x, kernel, bias), expected, atol=1e-5)


def test_inputs_and_filters_of_any_size_keep_their_digits() -> None:
    config = LayerConfig(16, 2, strides=2)
    shape = (1, 1, 1, 16, 48)
    x, kernel, bias = normal(config, shape, 2)
    powers = np.logspace(-30, 30, 16).astype(np.float32)
    x *= powers[:, None]
    kernel *= np.logspace(-6, 6, 16).astype(np.float32)[:, None]
    bias[:] = 0
    y = made(config, shape)(x, kernel, bias)
    expected = conv3d_transpose(config, x, kernel, bias)
    # Of each voxel and filter: the taps have one size.
    size = np.abs(expected).reshape(1, 2, 2, 16, 2, 16).max(axis=(1, 2, 4), keepdims=True)
    assert np.all(np.abs(y - expected).reshape(1, 2, 2, 16, 2, 16) <= 2e-6 * size)


def test_nothing_is_exactly_the_bias() -> None:
    config = LayerConfig(16, 2, strides=2)
    shape = (1, 2, 3, 4, 29)
    x, kernel, bias = normal(config, shape, 3)
    x[0, 1, 1, 2] = 0
    kernel[..., 5, :] = 0
    y = made(config, shape)(x, kernel, bias)
    np.testing.assert_array_equal(y[0, 2:4, 2:4, 4:6], np.broadcast_to(bias, (2, 2, 2, 16)))
    np.testing.assert_array_equal(y[..., 5], np.full_like(y[..., 5], bias[5]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_a_wild_input_stays_in_the_outputs_of_its_voxel(value: float) -> None:
    config = LayerConfig(16, 2, strides=2)
    shape = (1, 2, 3, 4, 29)
    x, kernel, bias = normal(config, shape, 4)
    kernel_made = made(config, shape)
    before = kernel_made(x, kernel, bias)
    for channel in (0, 8, 28):
        wild = x.copy()
        wild[0, 1, 2, 3, channel] = value
        y = kernel_made(wild, kernel, bias)
        inside = np.zeros(y.shape, bool)
        inside[0, 2:4, 4:6, 6:8] = True
        np.testing.assert_array_equal(y[~inside], before[~inside])
        with np.errstate(invalid="ignore", over="ignore"):
            expected = conv3d_transpose(config, wild, kernel, bias)[inside]
        if np.isfinite(value):
            np.testing.assert_allclose(y[inside], expected, rtol=1e-5)
        else:
            assert not np.isfinite(y[inside]).any()
            assert not np.isfinite(expected).any()
    assert kernel_made.lowered.weights_nonfinite == "tile"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_wild_weight_stays_in_the_outputs_of_its_filter_and_tap(value: float) -> None:
    config = LayerConfig(16, 2, strides=2)
    shape = (1, 2, 3, 4, 29)
    x, kernel, bias = normal(config, shape, 5)
    kernel_made = made(config, shape)
    before = kernel_made(x, kernel, bias)
    kernel[1, 0, 1, 3, 11] = value
    y = kernel_made(x, kernel, bias)
    inside = np.zeros(y.shape, bool)
    inside[:, 1::2, 0::2, 1::2, 3] = True
    assert not np.isfinite(y[inside]).any()
    np.testing.assert_array_equal(y[~inside], before[~inside])


def error_of_both(seed: int) -> tuple[float, float]:
    """The largest errors of a random layer against float64, of pairs and of the direct form."""
    rng = random.Random(seed)
    strides = tuple(rng.choice((1, 2, 2, 3)) for _ in range(3))
    config = LayerConfig(rng.randint(8, 40), strides, strides=strides)
    shape = (1, *(rng.randint(1, 6) for _ in range(3)), rng.randint(24, 300))
    x, kernel, bias = normal(config, shape, seed)
    # As after nothing, a rectifier, or a sigmoid.
    x = (x, np.maximum(x, 0), 1 / (1 + np.exp(-x)))[seed % 3].astype(np.float32)
    expected = conv3d_transpose(config, x, kernel, bias)
    work = Workload.of(config, shape)
    tiling = Tiling("pairs", 16, 1, rng.randint(8, 16), 4, stretch=8)
    plain = schedules.decide(work, target(), columns=False)
    ours, direct = (
        float(np.max(np.abs(Kernel(config, shape, tiling=one)(x, kernel, bias) - expected)))
        for one in (tiling, plain)
    )
    return ours, direct


@pytest.mark.parametrize("seed", few(range(20), range(10)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    ours, direct = error_of_both(seed)
    assert ours <= 2 * direct


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(10))
def test_error_on_hundreds_of_layers(part: int) -> None:
    found = {seed: error_of_both(seed) for seed in range(20 + 30 * part, 50 + 30 * part)}
    assert {seed: both for seed, both in found.items() if both[0] > 2 * both[1]} == {}


@pytest.mark.parametrize("channels", [*range(1, 14), 48, 64, 131])
def test_each_channel_is_in_one_pair_or_alone(channels: int) -> None:
    pairing = Pairing(channels)
    assert sorted(pairing.order) == list(range(channels))
    paired = [
        channel
        for a, b, count, _ in pairing.pairs
        for channel in (*range(a, a + count), *range(b, b + count))
    ]
    assert len(set(paired)) == len(paired) <= channels
    assert len(paired) >= 2 * channels // 3 - 2
    signs = sum(count * sign for _, _, count, sign in pairing.pairs)
    assert signs in (0, 1)


def test_scales_are_powers_of_two_near_the_mean() -> None:
    means = np.float32([1, 1.4, 1.5, 3e38, np.inf, 1e-37, 0, 1e-45])
    factor, inverse = scales(means)
    np.testing.assert_array_equal(factor[:3], [1, 1, 0.5])
    np.testing.assert_array_equal(inverse[:3], [1, 1, 2])
    assert np.isfinite(factor).all() and np.isfinite(inverse).all()
    np.testing.assert_array_equal(inverse[-2:], 0)
    assert 0.5 < means[5] * factor[5] < 2


def on(name: str, cores: int = 2) -> Any:
    return dataclasses.replace(target(name), cores=cores)


def test_the_rule_takes_kernel_equal_to_stride_where_adders_stand_apart() -> None:
    work = Workload.of(LayerConfig(64, 2, strides=2), (1, 8, 8, 8, 128)).joined()
    assert schedules.decide(work, on("znver4"), algorithm="auto").form == "pairs"
    assert schedules.decide(work, on("znver4")).form == "phase"
    assert schedules.decide(work, on("znver4"), algorithm="auto", exact=True).form == "phase"
    for other in ("znver3", "sapphirerapids", "x86-64-v4", "cortex-a76"):
        assert schedules.decide(work, on(other), algorithm="auto").form == "phase"
        with pytest.raises(ConfigError, match="adds with the units"):
            schedules.decide(work, on(other), algorithm="pairs")
    for config, shape, reason in (
        (LayerConfig(64, 3, strides=2), (1, 8, 8, 8, 128), "kernel = stride"),
        (LayerConfig(64, 2, strides=2, dtype="float64"), (1, 8, 8, 8, 128), "float32"),
        (LayerConfig(64, 2, strides=2), (1, 8, 8, 8, 16), "24 input channels"),
        (LayerConfig(64, 2, strides=2), (1, 1, 2, 3, 128), "8 voxels"),
        (LayerConfig(4, 2, strides=2), (1, 8, 8, 8, 128), "16 filters"),
    ):
        work = Workload.of(config, shape).joined()
        assert schedules.decide(work, on("znver4"), algorithm="auto").form != "pairs"
        with pytest.raises(ConfigError, match=reason):
            schedules.decide(work, on("znver4"), algorithm="pairs")


def test_a_task_asks_for_the_next_ones_inputs_where_they_come_from_memory() -> None:
    def fetch(size: int, channels: int, **more: Any) -> bool:
        config = LayerConfig(32, 2, strides=2, **more)
        volume = (size, size, size)
        first = "data_format" in more
        shape = (1, channels, *volume) if first else (1, *volume, channels)
        return pair.require(Workload.of(config, shape).joined(), on("znver4")).fetch

    size = 2 * round((target("znver4").l2_bytes / 4 / 64) ** (1 / 3))
    assert fetch(size, 64)
    assert not fetch(size // 4, 64)
    # There they are asked for in another way.
    assert not fetch(size, 64, data_format="channels_first")
    # Tasks share their voxels.
    assert not fetch(4, 8192)


def test_few_filters_do_not_pay_for_scaling_inputs_from_memory() -> None:
    forms = [
        schedules.decide(
            Workload.of(LayerConfig(filters, 1), (1, *size, 186)), on("znver4"), algorithm="auto"
        ).form
        for filters, size in ((20, (39, 39, 39)), (200, (39, 39, 39)), (200, (9, 9, 9)))
    ]
    assert forms == ["phase", "pairs", "pairs"]


@pytest.mark.parametrize("cores", [1, 2, 16])
@pytest.mark.parametrize("size", [2, 4, 13, 40])
@pytest.mark.parametrize("channels", [24, 64, 320, 1000])
def test_every_panel_and_voxel_belongs_to_one_task(cores: int, size: int, channels: int) -> None:
    work = Workload.of(LayerConfig(channels, 2, strides=2), (1, size, size, size, channels))
    tiling = pair.require(work.joined(), on("znver4", cores))
    form = PairForm(work.joined(), tiling)
    share = -(-form.panels // tiling.splits)
    assert (tiling.splits - 1) * share < form.panels <= tiling.splits * share
    assert 1 <= tiling.stretch <= share
    assert sum(tiles * width for tiles, width in form.runs) == size**3
    assert form.chunks * tiling.splits >= min(2 * cores, form.panels // 4)
    (variant,) = (
        one for one in Space.of(work, on("znver4", cores), "pairs").variants
        if one.base.form == "pairs"
    )  # fmt: skip
    assert variant.values(tiling) is not None and variant.fits(tiling)


def test_shapes_and_processors_share_pairs_or_none_has_them() -> None:
    config = LayerConfig(64, 2, strides=2)
    large, small, tiny = (Workload.of(config, (1, n, n, n, 128)) for n in (8, 4, 1))
    zen = on("znver4")
    tilings = schedules.decide_all([large, small], zen, algorithm="auto")
    assert [one.form for one in tilings] == ["pairs", "pairs"]
    assert len({str(lower(w, t).layout) for w, t in zip((large, small), tilings, strict=True)}) == 1
    forms = [one.form for one in schedules.decide_all([large, tiny], zen, algorithm="auto")]
    assert forms == ["phase", "phase"]
    alike = several.decide_several([large], [zen, zen], algorithm="auto")
    assert [[one.form for one in row] for row in alike] == [["pairs"], ["pairs"]]
    mixed = several.decide_several([large], [zen, on("x86-64-v3")], algorithm="auto")
    assert [[one.form for one in row] for row in mixed] == [["phase"], ["phase"]]


def test_it_does_not_serve_what_it_cannot() -> None:
    good = LayerConfig(32, 2, strides=2)
    assert serves(Workload.of(good, (1, 4, 4, 4, 32)).joined())
    for change, shape in (
        ({"activation": "softmax"}, (1, 4, 4, 4, 32)),
        ({"output_padding": 1}, (1, 4, 4, 4, 32)),
        ({"dtype": "float64"}, (1, 4, 4, 4, 32)),
        ({}, (1, 0, 4, 4, 32)),
    ):
        config = LayerConfig(**{**good.get_config(), "kernel_size": 2, **change})
        assert not serves(Workload.of(config, shape).joined())


def test_the_steps_of_zen_are_in_order() -> None:
    config, shape = LayerConfig(32, 2, strides=2), (1, 4, 4, 4, 48)
    kernel = (
        Kernel(config, shape, tiling=TILINGS[0], machine="znver4", ships=True)
        if runs_here("znver4")
        else None
    )
    if kernel is None:
        pytest.skip("this processor lacks the instructions of znver4")
    lines = [line.split() for line in kernel.code.text("s").splitlines()]
    names = [line[0] for line in lines if line and line[0].startswith("v")]
    orders = ["vaddps", "vaddps", "vfmadd231ps", "vfmadd231ps"], [
        "vsubps", "vsubps", "vfmadd231ps", "vfnmadd231ps",
    ]  # fmt: skip
    for order in orders:
        found = sum(names[i : i + 4] == order for i in range(len(names)))
        assert found >= 16
