"""The matrix form: layers, rows of all lengths, NaN and infinities, its rule."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target, whole_numbers
from turns import few

from tvmconv import schedules
from tvmconv.compute import lower
from tvmconv.compute.matrix import MatrixForm
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.space import Space

#: Kernel and strides, filters and shape.
LAYERS: dict[str, tuple[Any, int, tuple[int, ...], dict[str, Any]]] = {
    "2, 2, 2": (2, 7, (2, 5, 2, 4, 8), {"activation": "relu"}),
    "rows overlap": (2, 8, (1, 5, 2, 3, 11), {}),
    "flat height": ((2, 1, 2), 9, (1, 6, 2, 3, 6), {}),
    "flat width": ((1, 2, 1), 13, (1, 16, 3, 2, 16), {"use_bias": False}),
    "all flat": (1, 10, (1, 3, 3, 2, 7), {}),
    "3, 2, 3": ((3, 2, 3), 5, (1, 6, 3, 2, 17), {"dtype": "float16"}),
    "1, 1, 5": ((1, 1, 5), 3, (1, 4, 1, 1, 9), {"dtype": "mixed_bfloat16"}),
    "pieces": (2, 7, (2, 5, 2, 3, 12), {"activation": "relu"}),
    "pieces of a voxel": (2, 6, (1, 5, 3, 3, 5), {}),
    "half registers": ((1, 2, 4), 5, (1, 6, 2, 3, 6), {"dtype": "mixed_float16"}),
    "pieces across planes": ((2, 1, 2), 9, (2, 6, 3, 3, 2), {}),
    "double": (2, 4, (1, 3, 1, 3, 9), {"dtype": "float64", "activation": "gelu"}),
}


def of(filters: int, kernel: Any = 2, **changes: Any) -> LayerConfig:
    """A layer with kernel = stride, channels first."""
    return LayerConfig(filters, kernel, strides=kernel, data_format="channels_first", **changes)


@pytest.mark.parametrize("name", LAYERS)
def test_it_computes_the_layer(name: str) -> None:
    kernel_size, filters, shape, changes = LAYERS[name]
    config = of(filters, kernel_size, **changes)
    rng = np.random.default_rng(3)
    x, kernel, bias = whole_numbers(config, shape, rng)
    expected = conv3d_transpose(config, x, kernel, bias)
    vector = 4 if config.dtype == "float64" else 8
    for tiling in (Tiling("matrix", vector, 3, 2, 3), Tiling("matrix", 4, 2, 3, 2)):
        y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, rng)
        np.testing.assert_allclose(y.astype(np.float64), expected, rtol=1e-12)


@pytest.mark.parametrize("seed", few(range(60), range(10)))
def test_random_layers(seed: int) -> None:
    rng, numbers = random.Random(seed), np.random.default_rng(seed)
    kernel_size = tuple(rng.choice((1, 2, 2, 3, 4)) for _ in range(3))
    config = of(
        rng.randint(1, 19), kernel_size, padding=rng.choice(("valid", "same")),
        activation=rng.choice((None, "relu", "silu")), use_bias=rng.random() < 0.7,
        dtype=rng.choice(("float32", "float32", "float64", "mixed_float16")),
    )  # fmt: skip
    sizes = rng.randint(2, 7), rng.randint(2, 7), rng.choice((9, 10, 12, 13))
    shape = (rng.randint(1, 3), rng.randint(1, 21), *sizes)
    tiling = Tiling(
        "matrix", rng.choice((4, 8)), rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 9)
    )
    x, kernel, bias = whole_numbers(config, shape, numbers)
    y = Kernel(config, shape, tiling=tiling)(x, kernel, bias, numbers)
    tolerance = 1e-3 if config.dtype == "mixed_float16" else 1e-6
    np.testing.assert_allclose(
        y.astype(np.float64), conv3d_transpose(config, x, kernel, bias), tolerance, tolerance
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_where_it_belongs(value: float) -> None:
    config, shape = of(7), (1, 5, 2, 3, 11)
    x, kernel, bias = whole_numbers(config, shape, np.random.default_rng(4))
    made = Kernel(config, shape, tiling=Tiling("matrix", 8, 3, 2, 2))
    x[0, 2, 1, 2, 5] = value
    kernel[1, 0, 1, 6, 3] = value
    expected = conv3d_transpose(config, x, kernel, bias)
    np.testing.assert_array_equal(made(x, kernel, bias), expected)


@pytest.mark.parametrize(
    ("kernel", "sizes", "piece"),
    [
        (2, (4, 4, 16), 0),  # whole registers
        (2, (4, 4, 12), 4),
        (2, (4, 4, 30), 2),
        (2, (4, 4, 9), 1),
        (2, (4, 4, 29), 0),  # 32 are little more
        ((2, 2, 4), (4, 4, 9), 1),
        ((2, 1, 2), (4, 3, 4), 4),  # rows of a plane follow each other
        ((2, 2, 1), (4, 4, 12), 4),
        ((2, 2, 1), (4, 4, 9), 0),  # a lane alone
        (3, (4, 4, 12), 0),  # outputs of a voxel in two registers
    ],
)
def test_pieces_of_registers(kernel: Any, sizes: tuple[int, ...], piece: int) -> None:
    work = Workload.of(of(8, kernel), (1, 16, *sizes)).joined()
    form = MatrixForm(work, Tiling("matrix", 8, 3, 2, 4))
    assert form.piece == piece
    if piece:
        assert form.row == np.prod(sizes) and form.vectors[0] == form.vectors[1]


def on(name: str, cores: int = 1) -> Any:
    return dataclasses.replace(target(name), cores=cores)


@pytest.mark.parametrize(
    ("filters", "kernel", "shape", "matrix"),
    [
        (48, 2, (1, 48, 48, 48, 48), True),
        (64, 2, (1, 64, 100, 100, 8), True),
        (32, 2, (1, 64, 16, 64, 62), True),
        (32, 2, (1, 64, 16, 64, 9), True),
        # Rows that neither registers nor pieces of them divide, few filters, channels and voxels,
        # taps along the width that fill no register tile, and too many of them.
        (32, 3, (1, 64, 16, 64, 9), False),
        (4, 2, (1, 64, 16, 64, 64), False),
        (24, 2, (1, 8, 32, 48, 48), False),
        (320, 2, (1, 320, 2, 2, 8), False),
        (32, (2, 2, 4), (1, 64, 16, 64, 64), False),
        (32, (2, 2, 7), (1, 64, 16, 64, 64), False),
    ],
)
def test_the_rule_takes_kernels_as_long_as_strides(
    filters: int, kernel: Any, shape: tuple[int, ...], matrix: bool
) -> None:
    work = Workload.of(of(filters, kernel), shape).joined()
    tiling = schedules.decide(work, on("znver3"))
    assert (tiling.form == "matrix") is matrix
    for other in ("x86-64-v3", "znver4", "sapphirerapids", "cortex-a76"):
        assert schedules.decide(work, on(other)).form != "matrix"
    if not matrix:
        return
    form = MatrixForm(work, tiling)
    assert sum(blocks * size for blocks, size in form.blocks) == filters
    found = [one for one in Space.of(work, on("znver3")).variants if one.base.form == "matrix"]
    assert [one.values(tiling) is not None and one.fits(tiling) for one in found] == [True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_float16", "float64"])
def test_layers_of_half_width_are_its_too(dtype: str) -> None:
    work = Workload.of(of(48, dtype=dtype), (1, 48, 48, 48, 48)).joined()
    assert (schedules.decide(work, on("znver3")).form == "matrix") is (dtype != "float64")


def test_channels_last_and_long_activations_are_not_its() -> None:
    shape = (1, 48, 48, 48, 48)
    last = LayerConfig(48, 2, strides=2)
    for config in (last, of(48, activation="gelu"), of(48, activation="softmax")):
        work = Workload.of(config, shape).joined()
        assert schedules.decide(work, on("znver3")).form != "matrix"


def test_shapes_share_one_layout_of_weights() -> None:
    works = [Workload.of(of(48), (1, 64, *size)) for size in ((16, 48, 48), (12, 32, 40))]
    tilings = schedules.decide_all(works, on("znver3"))
    assert [one.form for one in tilings] == ["matrix"] * 2
    layouts = {str(lower(w, t).layout) for w, t in zip(works, tilings, strict=True)}
    assert len(layouts) == 1
    works.append(Workload.of(of(48), (1, 64, 5, 5, 5)))
    assert {one.form for one in schedules.decide_all(works, on("znver3"))} == {"phase"}
