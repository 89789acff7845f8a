"""Last Toom-Cook tiles with few outputs: fewer products, of inputs that are made up."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from cook_layers import FLOOR, cook_layers, errors
from kernels import Kernel, target
from turns import few, turns

from tvmconv.compute.last_tiles import remainder, used
from tvmconv.compute.schemes import KINDS, SCHEMES, Scheme
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import AxisTiles, tile_outputs
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.geometry import Axis, output_length
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook, toom_cook_pair, toom_cook_steps

#: Products of the first outputs, by (outputs of the scheme, taps, outputs that exist).
FEWER = {
    (3, 2, 1): 2, (4, 2, 1): 2, (4, 2, 2): 3, (3, 3, 1): 3, (4, 3, 1): 3, (4, 3, 2): 4,
}  # fmt: skip


def sums(scheme: Scheme, inputs: list[Fraction]) -> list[Fraction]:
    return [
        sum((Fraction(f) * inputs[offset + step] for step, f in KINDS[kind]), Fraction(0))
        for kind, offset in scheme.points
    ]


@pytest.mark.parametrize("key", SCHEMES)
def test_fewer_products_are_exact(key: tuple[int, int]) -> None:
    scheme, rng = SCHEMES[key], random.Random(0)
    for outputs in range(1, scheme.outputs):
        rest = remainder(scheme, outputs)
        if rest is None:
            # As many as there are taps and outputs are needed in any case.
            assert len(used(scheme, outputs)) == outputs + scheme.taps - 1
            assert (*key, outputs) not in FEWER
            continue
        assert len(rest.points) == rest.inputs == outputs + scheme.taps - 1
        assert len(rest.points) == FEWER[(*key, outputs)]
        assert rest.noise <= scheme.noise
        d = [Fraction(rng.randint(-99, 99)) for _ in range(rest.inputs)]
        g = [Fraction(rng.randint(-99, 99)) for _ in range(scheme.taps)]
        for row in rest.made:
            d.append(sum((Fraction(f) * x for f, x in zip(row, d, strict=False)), Fraction(0)))
        found = sums(scheme, d)
        dropped = set(used(scheme, outputs)) - set(rest.points)
        assert dropped
        assert not any(found[p] for p in dropped)
        for j in range(outputs):
            y = sum(d[j + k] * g[k] for k in range(scheme.taps))
            products = [
                Fraction(scheme.result[j][p])
                * found[p]
                * sum(
                    (Fraction(f) * x for f, x in zip(scheme.weights[p], g, strict=True)),
                    Fraction(0),
                )
                / (scheme.divisors[p] if scheme.divisors else 1)
                for p in rest.points
            ]
            assert sum(products, Fraction(0)) == y


def any_axis(rng: random.Random) -> Axis:
    stride = rng.randint(1, 3)
    kernel, size = rng.randint(stride, 3 * stride), rng.randint(3, 20)
    out, lo = output_length(size, kernel, stride, 1, rng.choice(("same", "valid")), None)
    return Axis(size, kernel, stride, 1, lo, out)


@pytest.mark.parametrize("seed", range(60))
def test_sums_of_the_last_tile_give_its_outputs(seed: int) -> None:
    """Of all phases at once, with the columns that a tile stores, in exact numbers."""
    rng = random.Random(seed)
    axis = any_axis(rng)
    for m, apart, shared in itertools.product((2, 3, 4), (False, True), (False, True)):
        tiles = AxisTiles(axis, m, 1, shared=shared, apart=apart)
        if not tiles.is_short:
            continue
        x = [Fraction(rng.randint(-9, 9)) for _ in range(4 * m + 9)]
        for group in tiles.classes:
            last = tiles.last(None if shared else group)
            assert last is not None
            taps = [Fraction(rng.randint(-9, 9)) for _ in range(group.scheme.taps)]
            needing = tiles.needing(group)
            for start, place, counts in zip(group.starts, group.places, needing, strict=True):
                base = start if shared else 0
                rest = axis.out - (tiles.tiles - 1) * tiles.span - place
                outputs = min(m, max(0, -(-rest // axis.stride)))
                products = []
                for p, (kind, offset) in enumerate(group.scheme.points):
                    if counts[p] < tiles.tiles:
                        products.append(Fraction(0))
                        continue
                    made = last[kind, base + offset]
                    total = Fraction(0)
                    for step, factor in KINDS[kind]:
                        d = base + offset + step
                        terms = made.get(d, ((d, 1.0),))
                        total += Fraction(factor) * sum(
                            (Fraction(f) * x[k] for k, f in terms), Fraction(0)
                        )
                    weights = group.scheme.weights[p if len(group.scheme.weights) > 1 else 0]
                    total *= sum(
                        (Fraction(f) * g for f, g in zip(weights, taps, strict=True)), Fraction(0)
                    )
                    products.append(
                        total / (group.scheme.divisors[p] if group.scheme.divisors else 1)
                    )
                for j in range(outputs):
                    y = sum(
                        (x[base + j + k] * taps[k] for k in range(group.scheme.taps)), Fraction(0)
                    )
                    row = group.scheme.result[j]
                    assert (
                        sum(
                            (Fraction(f) * q for f, q in zip(row, products, strict=True)),
                            Fraction(0),
                        )
                        == y
                    )


def test_which_axes_have_short_last_tiles() -> None:
    def axis(size: int, kernel: int, stride: int) -> Axis:
        out, lo = output_length(size, kernel, stride, 1, "same", None)
        return Axis(size, kernel, stride, 1, lo, out)

    for kernel, stride in ((3, 1), (4, 2), (5, 2), (6, 2), (3, 2)):
        for size, m in ((13, 4), (14, 4), (13, 3), (17, 4)):
            assert AxisTiles(axis(size, kernel, stride), m, 1, True).is_short
        for size, m in ((16, 4), (15, 4), (14, 3), (12, 3), (13, 2), (16, 2)):
            assert not AxisTiles(axis(size, kernel, stride), m, 1, True).is_short
    tiles = AxisTiles(axis(13, 4, 2), 4, 1, True)
    assert [tiles.needing(group) for group in tiles.classes] == [[(3, 3, 4, 4, 3)] * 2]
    assert tiles.needed_share(tiles.classes[0]) == 17 / 20
    assert toom_cook_steps.summed_share(tiles) == 1 - 0.6 / 4


def short_layer(rng: random.Random) -> tuple[LayerConfig, tuple[int, ...], Tiling]:
    """A layer and a tiling with short last tiles along some axis."""
    for config, shape, work in cook_layers(rng, 10, (24, 50), 5e7):
        channels, first = work.plan.in_channels, work.plan.channels_first
        outputs = rng.choice(tile_outputs(work.plan.axes, channels, config.filters))
        row = AxisTiles(work.plan.axes[2], outputs[2], 1, True).tiles
        width, line = rng.randint(1, 4), first or work.row_axis is not None
        if not line and width < row and rng.random() < 0.4:
            row = width
        paired = (
            bool(toom_cook_pair.pair_widths(work, target("znver4"), outputs, 8))
            and rng.random() < 0.5
        )
        dots = 0 if paired or config.filters < 20 else rng.choice((0, 0, 2))
        tiling = Tiling(
            "toom-cook", 16 if paired else rng.choice((4, 8, 16)), rng.randint(1, 2),
            width, 1,
            outputs=outputs, block=(rng.randint(1, 2), rng.randint(1, 2), row),
            shared=rng.randint(0, 3), paired=paired, dots=dots, compact=rng.random() < 0.6,
        )  # fmt: skip
        if any(axis.is_short for axis in ToomCookForm(work, tiling).axes):
            return config, shape, tiling
    raise AssertionError("the layers have no end")


@pytest.mark.parametrize("seed", few(range(36), (0, 2, 3)))
def test_error_is_at_most_twice_the_direct_forms(seed: int) -> None:
    ours, direct = errors(*short_layer(random.Random(seed)), seed)
    assert ours <= max(2 * direct, FLOOR)


@pytest.mark.parametrize(
    ("size", "outputs", "channels", "compact"),
    turns(
        (((7, 7, 16), (3, 3, 2)), ((6, 7, 19), (2, 3, 3))),
        (27, 32),
        (False, True),
    ),
)
def test_pairs_find_numbers_behind_the_sums_of_a_last_tile(
    size: tuple[int, int, int], outputs: tuple[int, int, int], channels: int, compact: bool
) -> None:
    """Scratch begins as NaN, and a task with all tiles never stores what the last does not need."""
    config, shape = LayerConfig(16, 4, 2, "same"), (1, *size, channels)
    work = Workload.of(config, shape)
    tiles = [AxisTiles(a, m, 1, True).tiles for a, m in zip(work.plan.axes, outputs, strict=True)]
    tiling = Tiling(
        "toom-cook", 16, 1, 8, 1, outputs=outputs, block=(tiles[0], tiles[1], tiles[2]), shared=2,
        paired=True, compact=compact,
    )  # fmt: skip
    assert any(axis.is_short for axis in ToomCookForm(work, tiling).axes)
    rng = np.random.default_rng(channels)
    weights = config.weight_shapes(channels)
    x, kernel, bias = (rng.standard_normal(some).astype(np.float32) for some in (shape, *weights))
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    assert np.max(np.abs(y - expected)) < 2e-6 * np.max(np.abs(expected))


@pytest.mark.parametrize(
    ("kernel", "strides", "size"),
    [
        ((3, 4, 4), (1, 2, 2), (5, 13, 13)),
        ((3, 3, 3), (1, 2, 2), (9, 9, 10)),
        # Eight phases are much code.
        *few(itertools.product((3, 4, 5), (2,), ((9, 13, 13), (13, 9, 10))), ()),
    ],
)
def test_products_left_out_change_no_bit(
    kernel: int | tuple[int, ...], strides: int | tuple[int, ...], size: tuple[int, int, int]
) -> None:
    """Zeros that last tiles do not need are neither stored nor read; other sums are the same."""
    config, shape = LayerConfig(20, kernel, strides, "same"), (1, *size, 32)
    work = Workload.of(config, shape)
    tiling = Tiling("toom-cook", 8, 1, 4, 1, outputs=(2, 4, 4), block=(1, 2, 4), shared=2)
    form = ToomCookForm(work, tiling)
    assert form.axes[1].is_short or form.axes[2].is_short
    rng = np.random.default_rng(size[0])
    weights = config.weight_shapes(32)
    arrays = [rng.standard_normal(some).astype(np.float32) for some in (shape, *weights)]
    found = [
        Kernel(config, shape, tiling=one)(*arrays, rng)
        for one in (tiling, dataclasses.replace(tiling, compact=True))
    ]
    np.testing.assert_array_equal(*found)


def test_products_that_some_phases_need_are_kept() -> None:
    axis = AxisTiles(Axis(5, 6, 3, 1, 0, 19), 3, 1, True)
    (group,) = axis.classes
    assert axis.needing(group) == [(2, 3, 3, 2), (2, 2, 2, 2), (2, 2, 2, 2)]
    assert axis.spared(group) == ({0, 3}, {1, 2})
    config, shape = LayerConfig(20, 6, 3, "valid", output_padding=1), (1, 5, 5, 5, 24)
    tiling = Tiling(
        "toom-cook", 16, 2, 3, 1, outputs=(2, 3, 3), block=(2, 3, 3), shared=2, compact=True
    )
    work = Workload.of(config, shape)
    form = ToomCookForm(work, tiling)
    assert [one.axis.out for one in form.axes] == [19, 19, 19]
    assert form.narrows
    rng = np.random.default_rng(0)
    weights = config.weight_shapes(24)
    arrays = [rng.integers(-3, 4, some).astype(np.float32) for some in (shape, *weights)]
    y = Kernel(config, shape, tiling=tiling)(*arrays, rng)
    np.testing.assert_array_equal(y, conv3d_transpose(config, *arrays))


def test_transforms_are_compact_where_it_was_measured() -> None:
    work = Workload.of(LayerConfig(32, 5, 2, "same"), (1, 13, 13, 13, 32))
    cpus = ("znver4", "znver3", "x86-64-v4", "haswell")
    found = {cpu: toom_cook.require(work, target(cpu)) for cpu in cpus}
    assert {cpu: one.compact for cpu, one in found.items()} == {
        "znver4": True, "znver3": True, "x86-64-v4": False, "haswell": False,
    }  # fmt: skip
    first = LayerConfig(32, 5, 2, "same", data_format="channels_first")
    turned = Workload.of(first, (1, 32, 13, 13, 13))
    assert toom_cook.require(turned, target("znver3")).compact
    # Room for longer schemes, and less code by the estimate.
    ours, plain = ToomCookForm(work, found["znver4"]), ToomCookForm(work, found["x86-64-v4"])
    assert math.prod(ours.tiling.outputs) > math.prod(plain.tiling.outputs)
    whole = ToomCookForm(work, dataclasses.replace(ours.tiling, compact=False))
    assert toom_cook_steps.code_bytes(ours) < 0.8 * toom_cook_steps.code_bytes(whole)
    # Fewer products are read.
    assert all(0.5 < toom_cook_steps.read_share(ours, one) < 1 for one in ours.combinations)
    assert all(toom_cook_steps.read_share(whole, one) == 1 for one in whole.combinations)


def test_last_register_tiles_leave_a_short_tile_out() -> None:
    work = Workload.of(LayerConfig(32, 3, 1, "same"), (1, 8, 8, 29, 32))
    base = Tiling("toom-cook", 16, 2, 8, 1, outputs=(2, 2, 4), block=(1, 1, 8))
    assert ToomCookForm(work, base).narrows
    # Register tiles of a part of a row must not reach over its end.
    part = dataclasses.replace(base, width=3, block=(1, 1, 3))
    assert not ToomCookForm(work, part).narrows
    assert ToomCookForm(work, dataclasses.replace(base, width=4, block=(1, 1, 4))).narrows
    even = Workload.of(LayerConfig(32, 3, 1, "same"), (1, 8, 8, 28, 32))
    assert not ToomCookForm(even, dataclasses.replace(base, block=(1, 1, 7))).narrows
