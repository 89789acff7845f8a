"""The Toom-Cook form: schemes, tiles, error, where NaN goes, and which layers take it."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cook_layers import FLOOR
from kernels import Kernel, target, variants
from turns import few, turns

import tvmconv
from tvmconv import schedules
from tvmconv.compute.schemes import SCHEMES
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import AxisTiles, tile_outputs
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook, toom_cook_cycles

#: Layers of the benchmark that must gain, with what `auto` must find; (input shape, filters,
#: kernel, stride, gains).
NAMED = {
    "gan_g4": ((1, 16, 16, 16, 128), 64, 4, 2, True),
    "psm_conv5": ((1, 12, 16, 32, 64), 64, 3, 2, True),
    "psm_conv6": ((1, 24, 32, 64, 64), 32, 3, 2, True),
    "pcc_l1": ((1, 16, 16, 16, 32), 32, 5, 2, True),
    "ae_s1": ((1, 16, 32, 32, 32), 32, 3, 1, True),
    "videogpt_0": ((1, 4, 32, 32, 240), 240, 4, 2, True),
    "unet_up3": ((1, 16, 16, 16, 256), 128, 2, 2, False),
    "gan_g1": ((1, 1, 1, 1, 200), 512, 4, 1, False),
    "gan_g2": ((1, 4, 4, 4, 512), 256, 4, 2, False),
    "gan_g5": ((1, 32, 32, 32, 64), 1, 4, 2, False),
    "few channels": ((1, 16, 16, 16, 7), 32, 4, 2, False),
    "eight channels": ((1, 16, 16, 16, 8), 32, 3, 1, True),
}


def layer(
    filters: int, kernel: Any, strides: Any, padding: str = "same", **more: Any
) -> LayerConfig:
    return LayerConfig(filters, kernel, strides, padding, **more)


def data(
    config: LayerConfig, shape: tuple[int, ...], rng: np.random.Generator, integers: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    def draw(some: tuple[int, ...], dtype: str) -> np.ndarray:
        values = rng.integers(-3, 4, some) if integers else rng.standard_normal(some)
        return values.astype(numpy_dtype(dtype))

    kernel = draw(config.kernel_shape(shape[config.channel_axis]), config.variable_dtype)
    bias = draw((config.filters,), config.variable_dtype) if config.use_bias else None
    return draw(shape, config.compute_dtype), kernel, bias


def any_tiling(rng: random.Random, work: Workload) -> Tiling:
    """Any legal tiling of the form."""
    axes = work.plan.axes
    outputs = rng.choice(tile_outputs(axes, work.plan.in_channels, work.plan.filters))
    vector, registers, width = rng.choice((4, 8, 16)), rng.randint(1, 3), rng.randint(1, 6)
    tiles = [AxisTiles(a, m, 1, True).tiles for a, m in zip(axes, outputs, strict=True)]
    block = [rng.randint(1, min(4, count)) for count in tiles]
    block[2] = tiles[2]
    line = work.plan.channels_first or work.row_axis is not None
    if rng.random() < 0.5 and width < tiles[2] and not line:
        block[2] = width * rng.randint(1, max(1, tiles[2] // width))
    shared, dots = rng.randint(0, 3), rng.choice((0, 0, 0, 1, 2, 3, 4))
    return Tiling(
        "toom-cook", vector, registers, width, 1,
        outputs=(outputs[0], outputs[1], outputs[2]),
        block=(block[0], block[1], block[2]), shared=shared,
        dots=dots if dots < work.plan.filters else 0, fetch=bool(sum(block) % 2),
        compact=bool((block[0] + block[1]) % 2),
    )  # fmt: skip


def any_layer(rng: random.Random) -> tuple[LayerConfig, tuple[int, ...], Tiling | None]:
    """A layer that the form serves, and a tiling: the rule's (None) or any."""
    while True:
        strides = rng.choice(((2, 2, 2), (1, 1, 1), (1, 2, 2), (2, 1, 3)))
        kernel = tuple(rng.choice((s, s + 1, 2 * s, 2 * s + 1, 3 * s)) for s in strides)
        first = rng.random() < 0.25
        more: dict[str, Any] = {
            "activation": rng.choice((None, None, "relu", "tanh", "softmax")),
            "data_format": "channels_first" if first else "channels_last",
            "use_bias": rng.random() < 0.8,
        }
        config = LayerConfig(
            rng.randint(1, 40), kernel, strides, rng.choice(("same", "valid")), **more
        )
        sizes = tuple(rng.randint(1, 9) for _ in range(3))
        channels, batch = rng.randint(8, 40), rng.choice((1, 1, 2))
        shape = (batch, channels, *sizes) if first else (batch, *sizes, channels)
        work = Workload.of(config, shape).joined()
        if toom_cook.refusal(work) is None and work.plan.flops < 4e7:
            return config, shape, any_tiling(rng, work) if rng.random() < 0.6 else None


def built(config: LayerConfig, shape: tuple[int, ...], tiling: Tiling | None = None) -> Kernel:
    tiling = tiling or toom_cook.require(Workload.of(config, shape).joined(), target())
    return Kernel(config, shape, tiling=tiling)


def error(y: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(y.astype(np.float64) - expected), initial=0.0))


@pytest.mark.parametrize("seed", few(range(40), range(8)))
def test_whole_numbers_are_exact(seed: int) -> None:
    rng = random.Random(seed)
    config, shape, tiling = any_layer(rng)
    config = LayerConfig.from_keras({**config.get_config(), "activation": "relu"})
    numbers = np.random.default_rng(seed)
    x, kernel, bias = data(config, shape, numbers, integers=True)
    kernel_made = built(config, shape, tiling)
    y = kernel_made(x, kernel, bias, numbers)
    expected = conv3d_transpose(config, x, kernel, bias)
    axes = zip(kernel_made.work.joined().plan.axes, kernel_made.tiling.outputs, strict=True)
    # The long schemes divide by 21, 105 and more.
    long = any(SCHEMES[m, phase.taps].divisors for axis, m in axes for phase in axis.phases)
    assert error(y, expected) <= (1e-5 * np.max(np.abs(expected)) if long else 0)


def error_of_both(seed: int) -> tuple[float, float]:
    """The largest errors of a random layer against float64, Toom-Cook and direct, over the largest
    result.

    Direct is a sum over all channels and taps at once. The column form, which few filters get, sums
    tap by tap and errs less than either; the rule takes Toom-Cook for none of its layers.
    """
    config, shape, tiling = any_layer(random.Random(1000 + seed))
    config = LayerConfig.from_keras({**config.get_config(), "activation": "linear"})
    numbers = np.random.default_rng(seed)
    x, kernel, bias = data(config, shape, numbers)
    expected = conv3d_transpose(config, x, kernel, bias)
    scale = float(np.max(np.abs(expected), initial=1e-30))
    ours = error(built(config, shape, tiling)(x, kernel, bias, numbers), expected)
    plain = schedules.decide(Workload.of(config, shape), target(), columns=False)
    direct = error(Kernel(config, shape, tiling=plain, ships=False)(x, kernel, bias), expected)
    return ours / scale, direct / scale


def test_axes_with_one_or_two_inputs_are_summed_as_they_are() -> None:
    config = layer(24, 4, 2)
    tiling = toom_cook.require(Workload.of(config, (1, 1, 2, 9, 24)), target())
    assert tiling.outputs[:2] == (1, 1)
    assert tiling.outputs[2] > 1
    with pytest.raises(ConfigError, match="over two inputs"):
        toom_cook.require(Workload.of(config, (1, 2, 1, 2, 24)), target())


@pytest.mark.parametrize("seed", few(range(100), range(10)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    ours, direct = error_of_both(seed)
    assert ours <= max(2 * direct, FLOOR)


@pytest.mark.nightly
@pytest.mark.parametrize("part", range(18))
def test_error_on_a_thousand_layers(part: int) -> None:
    worse = {}
    for seed in range(100 + 50 * part, 150 + 50 * part):
        ours, direct = error_of_both(seed)
        if ours > max(2 * direct, FLOOR):
            worse[seed] = (ours, direct)
    assert not worse


@pytest.mark.parametrize(
    ("policy", "data_format"),
    turns(
        ("float16", "bfloat16", "mixed_bfloat16", "mixed_float16"),
        ("channels_last", "channels_first"),
    ),
)
def test_half_floats(policy: str, data_format: str) -> None:
    config = layer(20, 3, 2, dtype=policy, activation="relu", data_format=data_format)
    shape = (2, 5, 4, 7, 18) if data_format == "channels_last" else (2, 18, 5, 4, 7)
    rng = np.random.default_rng(3)
    x, kernel, bias = data(config, shape, rng)
    y = built(config, shape)(x, kernel, bias, rng).astype(np.float64)
    kernel = kernel.astype(numpy_dtype(config.compute_dtype)).astype(np.float64)
    expected = conv3d_transpose(config, x, kernel, bias)
    unit = 2.0**-10 if "bfloat" not in policy else 2.0**-7
    assert error(y, expected) <= unit * np.max(np.abs(expected))


def test_open_batch() -> None:
    config = layer(32, 4, 2)
    kernel = built(config, (-1, 3, 5, 4, 16))
    for batch in (0, 1, 3):
        rng = np.random.default_rng(batch)
        x, weights, bias = data(config, (batch, 3, 5, 4, 16), rng)
        y = kernel(x, weights, bias, rng if batch else None)
        assert error(y, conv3d_transpose(config, x, weights, bias)) < 1e-4


def reached(
    kernel: Kernel, shape: tuple[int, ...], at: tuple[int, ...], value: float
) -> np.ndarray:
    """Voxels that are not finite where one input element is ``value``."""
    rng = np.random.default_rng(5)
    x, weights, bias = data(kernel.config, shape, rng)
    x[at] = value
    return ~np.isfinite(kernel(x, np.abs(weights) + 0.1, bias)).all(-1)


@pytest.mark.parametrize("size", [3, 4])
def test_nan_with_two_outputs_a_tile_and_two_taps(size: int) -> None:
    config, shape = layer(16, size, 2), (1, 5, 6, 7, 16)
    ours = built(
        config, shape, Tiling("toom-cook", 16, 1, 2, 1, outputs=(2, 2, 2), block=(2, 2, 4))
    )
    direct = Kernel(config, shape)
    for at in ((0, 0, 0, 0, 3), (0, 2, 3, 4, 15), (0, 4, 5, 6, 0), (0, 1, 0, 5, 7)):
        expected = reached(direct, shape, at, np.nan)
        assert 0 < expected.sum() < expected.size
        assert (reached(ours, shape, at, np.nan) == expected).all()
        # Infinities may turn into NaN on the way, at the same voxels.
        assert (reached(ours, shape, at, np.inf) == expected).all()


@pytest.mark.parametrize(
    ("size", "stride", "m"),
    few(((4, 2, 3), (4, 2, 4), (3, 1, 2), (5, 2, 2), (3, 2, 3)), (0, 1, 2)),
)
def test_nan_stays_inside_the_tiles_that_read_it(size: int, stride: int, m: int) -> None:
    config, shape = layer(16, size, stride), (1, 8, 8, 8, 16)
    tiling = Tiling("toom-cook", 16, 1, 3, 1, outputs=(m, m, m), block=(1, 1, 9))
    work = Workload.of(config, shape)
    ours = built(
        config,
        shape,
        variants(
            tiling,
            block=(1, 1, ToomCookForm(work, variants(tiling, block=(1, 1, 1))).axes[2].tiles),
        ),
    )
    direct = Kernel(config, shape)
    span = m * stride
    for at, value in itertools.product(((0, 0, 0, 0, 3), (0, 3, 4, 5, 15)), (np.nan, np.inf)):
        found, exact = reached(ours, shape, at, value)[0], reached(direct, shape, at, value)[0]
        assert found[exact].all()
        cells = set(map(tuple, np.argwhere(exact) // span))
        assert set(map(tuple, np.argwhere(found) // span)) <= cells


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (layer(16, 2, 2), "one tap"),
        (layer(16, 1, 1), "one tap"),
        (layer(16, 7, 2), "one to three taps"),
        (layer(16, (4, 4, 1), (2, 2, 2)), "one to three taps"),
        (layer(16, 3, 1, dilation_rate=(1, 2, 1)), "dilation"),
        (layer(16, 4, 2, dtype="float64"), "float32"),
        (layer(16, 4, 2), "input channels"),
    ],
)
def test_refusals(config: LayerConfig, words: str, tmp_path: Path) -> None:
    shape = (1, 4, 4, 4, 7 if words == "input channels" else 16)
    assert toom_cook.decide(Workload.of(config, shape), target()) is None
    made = tvmconv.Conv3DTranspose.from_config(config.get_config())
    with pytest.raises(ConfigError, match=words):
        tvmconv.compile(made, shape, algorithm="toom-cook", output=tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_kernels_that_are_not_finite() -> None:
    work = Workload.of(layer(32, 3, 1), (1, 16, 16, 16, 32))
    assert toom_cook.decide(work, target()) is not None
    assert toom_cook.decide(work, target(), exact=True) is None
    with pytest.raises(ConfigError, match="not finite"):
        toom_cook.require(work, target(), exact=True)


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("machine", ["znver5", "znver3"])
def test_the_rule(name: str, machine: str) -> None:
    shape, filters, kernel, stride, gains = NAMED[name]
    config = layer(filters, kernel, stride, "valid" if name == "gan_g1" else "same")
    work = Workload.of(config, shape)
    tiling = schedules.decide(work, target(machine), algorithm="auto")
    assert (tiling.form == "toom-cook") == gains
    assert schedules.decide(work, target(machine)).form != "toom-cook"
    if gains:
        form = ToomCookForm(work, tiling)
        lanes = sum(group.blocks * group.lanes for group in form.groups)
        assert form.offsets[-1] * 4 <= 16 << 20
        assert form.packed_size * filters <= 8 * math.prod(work.plan.kernel_shape) * lanes
        assert tiling.width * tiling.registers + tiling.registers < target(machine).vector_registers
        assert form.axes[2].blocks == 1 or tiling.block[2] % tiling.width == 0
        assert cut(form.axes[2].tiles, tiling.width)


def test_eight_filters_are_enough_where_it_saves_much() -> None:
    def chosen(filters: int, channels: int, kernel: int, machine: str) -> bool:
        """Whether the lanes are filters."""
        work = Workload.of(layer(filters, kernel, 1), (1, 48, 48, 48, channels))
        tiling = schedules.decide(work, target(machine), algorithm="auto")
        return tiling.form == "toom-cook" and not tiling.across

    for machine in ("znver3", "znver5"):
        assert chosen(11, 58, 3, machine)
        assert not chosen(7, 58, 3, machine)
        # As many input channels as keep the roundings small are enough.
        assert chosen(70, 15, 3, machine) and chosen(70, 8, 3, machine)
        assert not chosen(70, 7, 3, machine)


def test_sums_of_half_a_line_cost_less_than_those_of_a_whole_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = Workload.of(layer(64, 3, 1), (1, 16, 16, 16, 64))
    forms = [ToomCookForm(work, toom_cook.require(work, target(f"znver{n}"))) for n in (3, 5)]
    assert [form.tiling.vector for form in forms] == [8, 16]
    machine = target("znver5")
    short, whole = (toom_cook_cycles.cycles(form, machine) for form in forms)
    monkeypatch.setattr(toom_cook_cycles, "_SHORT", 1.0)
    assert toom_cook_cycles.cycles(forms[0], machine) > short
    assert toom_cook_cycles.cycles(forms[1], machine) == whole


def test_records_keep_every_decision() -> None:
    work = Workload.of(layer(32, 3, 1), (1, 16, 16, 16, 32))
    tiling = toom_cook.require(work, target())
    assert Tiling.from_json(json.loads(json.dumps(tiling.to_json()))) == tiling


def test_artifacts(tmp_path: Path) -> None:
    config, shapes = layer(32, 4, 2, activation="relu"), [(1, 6, 5, 7, 32), (None, 8, 8, 8, 32)]
    made = tvmconv.Conv3DTranspose.from_config(config.get_config())
    artifact = tvmconv.compile(made, shapes, algorithm="toom-cook", output=tmp_path / "a")
    manifest = artifact.manifest
    assert (manifest.algorithm, manifest.nonfinite) == ("toom-cook", "tile")
    errors = manifest.check["max_error_float64"]
    assert 0 < errors["toom-cook"] <= 2 * errors["direct"]
    direct = tvmconv.compile(made, shapes, algorithm="direct", output=tmp_path / "d")
    assert (direct.manifest.algorithm, direct.manifest.nonfinite) == ("direct", "exact")
    assert set(direct.manifest.check["max_error_float64"]) == {"direct"}
    loaded, plain = artifact.load(), direct.load()
    rng = np.random.default_rng(2)
    for shape in ((1, 6, 5, 7, 32), (2, 8, 8, 8, 32)):
        x = rng.standard_normal(shape, dtype=np.float32)
        np.testing.assert_allclose(loaded(x), plain(x), atol=2e-5)


@pytest.mark.parametrize(
    ("filters", "activation", "shape"),
    few(
        [
            (40, "gelu", (1, 5, 6, 7, 24)),
            (32, "relu", (1, 16, 16, 16, 32)),
            (31, None, (1, 16, 16, 16, 32)),
            (33, "relu", (1, 16, 16, 16, 32)),
            (37, "relu", (1, 16, 16, 16, 32)),
            (32, "relu", (1, 13, 13, 13, 32)),
        ],
        (0,),
    ),
)
def test_code_stays_small(
    tmp_path: Path, filters: int, activation: str | None, shape: tuple[int, ...]
) -> None:
    config = layer(filters, 5, 2, activation=activation).get_config()
    artifact = tvmconv.compile(
        tvmconv.Conv3DTranspose.from_config(config), shape,
        algorithm="toom-cook", weights="external", output=tmp_path,
    )  # fmt: skip
    (library,) = artifact.path.glob("*.so")
    assert library.stat().st_size < 150_000
