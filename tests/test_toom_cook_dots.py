"""Toom-Cook for few filters and many taps: input channels as lanes, schemes along the height."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target
from turns import few

import tvmconv
from tvmconv import schedules
from tvmconv.compute import layout
from tvmconv.compute.cook_schemes import CookScheme, phases, scheme, transform
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook_dots import ToomCookDotForm
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ConfigError
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules import several
from tvmconv.schedules.cpu import dot, toom_cook, toom_cook_dot
from tvmconv.schedules.space import Space

#: Two roundings of the largest result: what the error may be where the direct form is almost exact.
FLOOR = 2.0**-22
BIG = LayerConfig(1, 9, 2, "same")
BIG_SHAPE = (1, 32, 32, 32, 32)
SCHEMES = [
    one for m, taps in itertools.product(range(5), range(7)) if (one := scheme(m, taps)) is not None
]


@pytest.mark.parametrize("one", SCHEMES, ids=lambda one: one.name)
def test_schemes_are_correlations(one: CookScheme) -> None:
    rng = np.random.default_rng(1)
    d, taps = rng.standard_normal(one.products), rng.standard_normal(one.taps)
    u: list[float] = []
    for pair, terms in zip(one.pairs, one.even, strict=True):
        behind, first = (sum(f * d[k + more] for k, f in terms) for more in (1, 0))
        u += [behind + float(pair) * first, behind - float(pair) * first]
    u += [sum(f * d[k] for k, f in terms) for terms in one.alone]
    m = np.array(u) * transform(one, taps, 0)
    points = [p for pair in one.pairs for p in (pair, -pair)] + [0] * one.has_zero
    for j in range(one.outputs):
        y = sum(float(p) ** j * m[i] for i, p in enumerate(points))
        y += m[-1] if j == one.outputs - 1 else 0.0
        assert y == pytest.approx(sum(d[j + k] * taps[::-1][k] for k in range(one.taps)))


@pytest.mark.parametrize("one", SCHEMES, ids=lambda one: one.name)
def test_factors_have_few_digits(one: CookScheme) -> None:
    for terms in (*one.even, *one.alone):
        assert terms[0][1] == 1
        assert all(np.float32(factor) == factor for _, factor in terms)
    for factors, by in one.weights:
        # A weight of 24 bits times a factor is exact in float64: no order of sums is told apart.
        assert all(np.float16(factor) == factor for factor in factors)
        assert by % 2 == 1


def any_layer(rng: random.Random, **more: Any) -> tuple[LayerConfig, tuple[int, ...], Tiling]:
    """A layer that the form serves, and any tiling."""
    while True:
        strides = rng.choice(((2, 2, 2), (1, 1, 1), (1, 2, 2), (2, 2, 1), (1, 1, 3), (3, 2, 2)))
        height = rng.choice((3, 4, 5) if strides[1] == 1 else (6, 7, 8, 9, 10))
        kernel = rng.choice((1, 2, 3, 5, 7)), height, rng.choice((1, 2, 3, 6, 9))
        padding = rng.choice(("same", "valid"))
        extra = tuple(rng.randint(0, s - 1) for s in strides) if rng.random() < 0.3 else None
        config = LayerConfig(
            rng.randint(1, 4), kernel, strides, padding, output_padding=extra,
            use_bias=rng.random() < 0.8, **more,
        )  # fmt: skip
        sizes = (rng.randint(1, 5), rng.randint(6, 15), rng.randint(1, 15))
        shape = (rng.choice((1, 1, 2)), *sizes, rng.choice((16, 24, 32, 48)))
        work = Workload.of(config, shape).joined()
        if toom_cook_dot.serves(work) and work.plan.flops < 2e7:
            return config, shape, any_tiling(rng, work)


def any_tiling(rng: random.Random, work: Workload) -> Tiling:
    outputs = rng.choice([m for m in (2, 3, 4) if phases(work.plan.axes[1], m)])
    lanes = rng.choice([n for n in (4, 8, 16) if work.plan.in_channels % n == 0])
    return Tiling(
        "toom-cook", lanes, 1, rng.randint(1, 5), 1, outputs=(1, outputs, 1),
        planes=rng.randint(1, 6), dots=work.plan.filters,
    )  # fmt: skip


def arrays(
    config: LayerConfig, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    x = rng.standard_normal(shape).astype(numpy_dtype(config.compute_dtype))
    kernel = rng.standard_normal(config.kernel_shape(shape[-1]))
    bias = rng.standard_normal(config.filters) if config.use_bias else None
    variable = numpy_dtype(config.variable_dtype)
    return x, kernel.astype(variable), None if bias is None else bias.astype(variable)


@pytest.mark.parametrize("seed", few(range(12), range(6)))
def test_it_computes_the_layer(seed: int) -> None:
    config, shape, tiling = any_layer(random.Random(seed), activation="relu")
    rng = np.random.default_rng(seed)
    x, kernel, bias = arrays(config, shape, rng)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    assert np.max(np.abs(y - expected)) <= 2e-6 * max(1.0, np.max(np.abs(expected)))


@pytest.mark.parametrize("seed", few(range(20, 26), (0, 3, 5)))
def test_channels_first(seed: int) -> None:
    policy = {23: "float16", 25: "bfloat16"}.get(seed, "float32")
    last, shape, tiling = any_layer(random.Random(seed), dtype=policy)
    config = dataclasses.replace(last, data_format="channels_first")
    rng = np.random.default_rng(seed)
    x, kernel, bias = arrays(last, shape, rng)
    expected = conv3d_transpose(
        last, *(None if a is None else a.astype("f8") for a in (x, kernel, bias))
    )
    first = np.ascontiguousarray(np.moveaxis(x, -1, 1))
    y = Kernel(config, first.shape, tiling=tiling)(first, kernel, bias, rng)
    unit = {"float32": 2e-6, "float16": 2.0**-10, "bfloat16": 2.0**-7}[policy]
    error = np.abs(np.moveaxis(y.astype(np.float64), 1, -1) - expected)
    assert np.max(error) <= unit * max(1.0, np.max(np.abs(expected)))


@pytest.mark.parametrize("seed", few(range(6), range(3)))
def test_error_is_at_most_twice_the_dot_forms(seed: int) -> None:
    # The direct form with the smallest errors: its lanes are added up as a tree.
    config, shape, tiling = any_layer(random.Random(1000 + seed))
    work = Workload.of(config, shape).joined()
    tiling = dataclasses.replace(tiling, outputs=(1, max(toom_cook_dot.outputs(work)), 1))
    rng = np.random.default_rng(seed)
    x, kernel, bias = arrays(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    plain = Tiling("dots", tiling.vector, 1, 1, 2, pack=False)
    scale = float(np.max(np.abs(expected), initial=1e-30))
    ours, others = (
        float(np.max(np.abs(Kernel(config, shape, tiling=one)(x, kernel, bias) - expected))) / scale
        for one in (tiling, plain)
    )
    assert ours <= max(2 * others, FLOOR)


@pytest.mark.parametrize("policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"])
def test_half_floats(policy: str) -> None:
    config = LayerConfig(2, (3, 5, 3), 1, "same", dtype=policy, activation="tanh")
    rng = np.random.default_rng(3)
    x, kernel, bias = arrays(config, (2, 3, 7, 9, 32), rng)
    tiling = Tiling("toom-cook", 16, 1, 4, 1, outputs=(1, 3, 1), planes=2, dots=2)
    kernel = (kernel * 0.1).astype(kernel.dtype)
    y = Kernel(config, x.shape, tiling=tiling)(x, kernel, bias, rng).astype(np.float64)
    rounded = kernel.astype(x.dtype).astype(np.float64)
    assert bias is not None
    expected = conv3d_transpose(
        config, x.astype(np.float64), rounded, bias.astype(x.dtype).astype(np.float64)
    )
    unit = 2.0**-10 if "bfloat" not in policy else 2.0**-7
    assert np.max(np.abs(y - expected)) <= unit


def test_open_batch() -> None:
    config, shape = LayerConfig(1, 7, 2, "same"), (-1, 3, 6, 5, 16)
    tiling = next(iter(toom_cook_dot.candidates(Workload.of(config, shape), target(), None))).tiling
    kernel = Kernel(config, shape, tiling=tiling)
    for batch in (0, 1, 3):
        rng = np.random.default_rng(batch)
        x, weights, bias = arrays(config, (batch, *shape[1:]), rng)
        y = kernel(x, weights, bias, rng if batch else None)
        expected = conv3d_transpose(config, x, weights, bias)
        assert np.max(np.abs(y - expected), initial=0.0) < 1e-3


@pytest.mark.parametrize("m", [2, 3])
def test_nan_stays_inside_the_tiles_that_read_it(m: int) -> None:
    config, shape = LayerConfig(1, (2, 9, 3), 2, "same"), (1, 4, 11, 6, 32)
    tiling = Tiling("toom-cook", 8, 1, 2, 1, outputs=(1, m, 1), planes=2, dots=1)
    rng = np.random.default_rng(5)
    clean, kernel, _ = arrays(config, shape, rng)
    kernel = (np.abs(kernel) + 0.1).astype(np.float32)
    kernels = [Kernel(config, shape, tiling=tiling), Kernel(config, shape, form="definition")]
    for at, value in itertools.product(((0, 0, 0, 0, 3), (0, 2, 7, 5, 15)), (np.nan, np.inf)):
        x = clean.copy()
        x[at] = value
        found, exact = (
            ~np.isfinite(one(x, kernel, np.zeros(1, np.float32))[0, ..., 0]) for one in kernels
        )
        assert found[exact].all()
        # Depth and width are exact; along the height tiles of 2 m outputs.
        span = np.array([1, 2 * m, 1])
        cells = set(map(tuple, np.argwhere(exact) // span))
        assert set(map(tuple, np.argwhere(found) // span)) <= cells


@pytest.mark.parametrize("machine", ["znver4", "emeraldrapids"])
def test_the_rule(machine: str) -> None:
    def chosen(config: LayerConfig, shape: tuple[int, ...]) -> bool:
        work = Workload.of(config, shape).joined()
        tiling = schedules.decide(work, target(machine), algorithm="auto")
        return toom_cook_dot.is_one(work, tiling)

    assert chosen(BIG, BIG_SHAPE)
    assert chosen(LayerConfig(1, 5, 1, "same"), (1, 24, 24, 32, 32))
    # Three taps save little, which loads and sums hide where products are two a cycle.
    assert chosen(LayerConfig(1, 3, 1, "same"), (1, 32, 48, 48, 64)) == (machine == "znver4")
    assert not chosen(LayerConfig(1, 4, 2, "same"), BIG_SHAPE)
    first = LayerConfig(1, 9, 2, "same", data_format="channels_first")
    assert chosen(first, (1, 32, 32, 32, 32)) == (machine == "znver4")
    assert not chosen(LayerConfig(8, 9, 2, "same"), BIG_SHAPE)
    assert not chosen(BIG, (1, 32, 4, 32, 32))
    work = Workload.of(BIG, BIG_SHAPE).joined()
    assert schedules.decide(work, target(machine), algorithm="direct").form == "dots"
    exact = schedules.decide(work, target(machine), algorithm="auto", exact=True)
    assert exact.form == "dots"


def test_limits_of_the_form() -> None:
    for config, shape in (
        (LayerConfig(1, 11, 2, "same"), BIG_SHAPE),
        (LayerConfig(1, (3, 4, 3), (1, 2, 1), "same"), BIG_SHAPE),
        (LayerConfig(5, 9, 2, "same"), BIG_SHAPE),
        (LayerConfig(1, 9, 2, "same", dtype="float64"), BIG_SHAPE),
        (LayerConfig(1, 5, dilation_rate=2), BIG_SHAPE),
        (LayerConfig(4, 5, 1, "same", activation="softmax"), BIG_SHAPE),
        (BIG, (1, 32, 32, 32, 30)),
        (LayerConfig(1, (1, 5, 1), 1), BIG_SHAPE),
    ):
        assert not toom_cook_dot.serves(Workload.of(config, shape).joined())
    assert "along the height" in str(
        toom_cook.refusal(Workload.of(LayerConfig(1, 11, 2), BIG_SHAPE).joined())
    )


def test_an_artifact(tmp_path: Path) -> None:
    layer = tvmconv.Conv3DTranspose(1, 7, strides=2, padding="same")
    shape = (1, 6, 8, 9, 32)
    artifact = tvmconv.compile(layer, shape, algorithm="toom-cook", output=tmp_path / "a")
    manifest = artifact.manifest
    assert (manifest.algorithm, manifest.nonfinite) == ("toom-cook", "tile")
    errors = manifest.check["max_error_float64"]
    assert 0 < errors["toom-cook"] <= max(2 * errors["direct"], FLOOR)
    direct = tvmconv.compile(layer, shape, algorithm="direct", output=tmp_path / "b").manifest
    assert (direct.algorithm, direct.nonfinite) == ("direct", "exact")


def test_kernels_that_are_not_finite_are_refused() -> None:
    work = Workload.of(BIG, BIG_SHAPE).joined()
    assert toom_cook_dot.is_one(work, toom_cook.require(work, target()))
    with pytest.raises(ConfigError, match="not finite"):
        toom_cook.require(work, target(), exact=True)


def test_shapes_and_processors_share_weights() -> None:
    shapes = (BIG_SHAPE, (1, 5, 9, 11, 32))
    works = [Workload.of(BIG, shape).joined() for shape in shapes]
    machines = [target("znver4"), target("x86-64-v3"), target("x86-64-v2")]
    rows = several.decide_several(works, machines, algorithm="toom-cook")
    pairs = [(work, tiling) for row in rows for work, tiling in zip(works, row, strict=True)]
    assert all(toom_cook_dot.is_one(work, tiling) for work, tiling in pairs)
    assert {tiling.vector for _, tiling in pairs} == {4, 8, 16}
    assert len({layout(work, tiling) for work, tiling in pairs}) == 1
    for work, tiling in pairs[1::2]:
        rng = np.random.default_rng(2)
        x, kernel, bias = arrays(BIG, shapes[1], rng)
        y = Kernel(BIG, shapes[1], tiling=tiling)(x, kernel, bias)
        expected = conv3d_transpose(BIG, x, kernel, bias)
        assert np.max(np.abs(y - expected)) <= 2e-6 * np.max(np.abs(expected))
        assert ToomCookDotForm(work, tiling).block == 16
    # A height that the schemes would err on: one form for both is a direct one.
    works.append(Workload.of(BIG, (1, 5, 3, 11, 32)).joined())
    assert "toom-cook" not in {one.form for one in schedules.decide_all(works, machines[0])}


def test_records_and_the_space_hold_it() -> None:
    work = Workload.of(BIG, BIG_SHAPE).joined()
    space = Space.of(work, target("znver4"))
    default = space.default
    assert isinstance(default, Tiling) and toom_cook_dot.is_one(work, default)
    assert Tiling.from_json(json.loads(json.dumps(default.to_json()))) == default
    assert space.find(default) is not None
    others = [
        one for one in space.all() if isinstance(one, Tiling) and toom_cook_dot.is_one(work, one)
    ]
    assert len(set(others)) == len(others) > 10
    # And where the rule prefers another form.
    small = Workload.of(LayerConfig(1, 6, 2, "same"), (1, 8, 8, 8, 16)).joined()
    assert dot.decide(small, target("znver4")) is not None
    assert "toom-cook" in Space.of(small, target("znver4")).forms
