"""NaN and infinities, in the input and in the kernel, reach their voxels and no other."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kernels import Kernel, target
from numpy.typing import ArrayLike

import tvmconv
from tvmconv import schedules
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import column, definition, dot, phase, voxel

#: Arguments, and an input of channels last.
LAYERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "plain": ({"filters": 20, "kernel_size": 3}, (2, 3, 4, 5, 3)),
    "same": (
        {"filters": 18, "kernel_size": 3, "strides": 2, "padding": "same"},
        (1, 3, 2, 5, 4),
    ),
    "holes": ({"filters": 17, "kernel_size": (1, 2, 1), "strides": (2, 3, 3)}, (1, 2, 3, 4, 2)),
    "folded": (
        {"filters": 16, "kernel_size": 2, "strides": 2, "padding": "same"},
        (1, 2, 3, 4, 3),
    ),
    "dilated": ({"filters": 16, "kernel_size": 3, "dilation_rate": (1, 2, 3)}, (1, 3, 3, 4, 2)),
    "kernel above input": (
        {"filters": 33, "kernel_size": (2, 4, 5), "padding": "same"},
        (1, 2, 2, 1, 5),
    ),
    "output padding": (
        {"filters": 16, "kernel_size": 3, "strides": 3, "output_padding": (2, 0, 1)},
        (1, 2, 3, 2, 3),
    ),
    "few filters": (
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": "same"},
        (1, 3, 4, 9, 3),
    ),
}
FORMS = {
    "default": schedules, "columns": column, "definition": definition, "dots": dot,
    "phase": phase, "voxel": voxel,
}  # fmt: skip


def case(
    name: str, channels_first: bool, **more: Any
) -> tuple[LayerConfig, tuple[int, ...], np.random.Generator]:
    arguments, shape = LAYERS[name]
    if channels_first:
        more["data_format"] = "channels_first"
        shape = (shape[0], shape[4], *shape[1:4])
    return LayerConfig(**arguments, **more), shape, np.random.default_rng(7)


def tiling_of(form: str, config: LayerConfig, shape: tuple[int, ...]) -> Tiling | None:
    more = {"always": True} if form in ("columns", "dots") else {}
    work = Workload.of(config, shape)
    return FORMS[form].decide(work, target(), **more)  # type: ignore[attr-defined]


def weights(
    config: LayerConfig, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Positive weights, so that infinities of one sign stay infinities."""
    channels = shape[config.channel_axis]
    variable = numpy_dtype(config.variable_dtype)
    kernel = rng.uniform(0.1, 1.0, config.kernel_shape(channels)).astype(variable)
    return kernel, rng.standard_normal(config.filters).astype(variable)


def window(config: LayerConfig, shape: tuple[int, ...], at: ArrayLike) -> np.ndarray:
    """The output voxels, of all filters, that the input element at ``at`` reaches."""
    marked = np.zeros(shape)
    marked[tuple(np.asarray(at))] = 1.0
    ones = np.ones(config.kernel_shape(shape[config.channel_axis]))
    return conv3d_transpose(config, marked, ones, None) > 0


@pytest.mark.parametrize("channels_first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_input_reaches_its_window(name: str, form: str, channels_first: bool) -> None:
    config, shape, rng = case(name, channels_first)
    tiling = tiling_of(form, config, shape)
    if tiling is None:  # This form does not serve the layer; the default then is another one.
        assert form in ("columns", "dots", "voxel", "phase")
        assert tiling_of("default", config, shape) is not None
        return
    kernel, bias = weights(config, shape, rng)
    built = Kernel(config, shape, tiling=tiling)
    packed = built.lowered.pack(kernel, bias)
    x = rng.standard_normal(shape).astype(np.float32)
    clean = built.run(x, packed)
    assert np.isfinite(clean).all()
    corners = list(itertools.product(*({0, size - 1} for size in shape)))
    inner = [tuple(int(rng.integers(size)) for size in shape) for _ in range(6)]
    for at in corners + inner:
        reached = window(config, shape, at)
        for value in (np.nan, np.inf, -np.inf):
            spoilt = x.copy()
            spoilt[at] = value
            y = built.run(spoilt, packed)
            assert reached.shape == y.shape
            same = np.isnan(y) if np.isnan(value) else y == value
            assert same[reached].all()
            assert y[~reached].tobytes() == clean[~reached].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16", "float64"])
@pytest.mark.parametrize("name", ["same", "holes", "few filters"])
def test_the_input_of_other_dtypes(name: str, dtype: str) -> None:
    config, shape, rng = case(name, False, dtype=dtype)
    kernel, bias = weights(config, shape, rng)
    x = rng.standard_normal(shape)
    x[0, 0, 1, 2, 1], x[0, 1, 0, 1, 0] = np.nan, np.inf
    reached = window(config, shape, (0, 0, 1, 2, 1)), window(config, shape, (0, 1, 0, 1, 0))
    y = Kernel(config, shape)(x, kernel, bias).astype(np.float64)
    assert np.isnan(y[reached[0]]).all()
    assert np.isposinf(y[reached[1] & ~reached[0]]).all()
    assert np.isfinite(y[~reached[0] & ~reached[1]]).all()


@pytest.mark.parametrize("form", FORMS)
def test_infinity_times_a_zero_weight_is_nan(form: str) -> None:
    config, shape, rng = case("few filters", False)
    kernel, bias = weights(config, shape, rng)
    kernel[1, 1, 1] = 0.0
    x = rng.standard_normal(shape)
    x[0, 1, 1, 1, 0] = np.inf
    y = Kernel(config, shape, tiling=tiling_of(form, config, shape))(x, kernel, bias)
    expected = conv3d_transpose(config, x, kernel, bias)
    assert np.isnan(expected).any()
    assert (np.isnan(y) == np.isnan(expected)).all()
    assert (np.isinf(y) == np.isinf(expected)).all()


def compiled(
    config: LayerConfig, shape: tuple[int, ...], values: list[np.ndarray], folder: Path
) -> Any:
    layer = tvmconv.Conv3DTranspose.from_config(config)
    layer.build(shape)
    layer.set_weights(values)
    return tvmconv.compile(layer, shape, output=folder)


@pytest.mark.parametrize("channels_first", [False, True], ids=["last", "first"])
@pytest.mark.parametrize("name", LAYERS)
def test_baked_kernels_reach_what_their_taps_reach(
    name: str, channels_first: bool, tmp_path: Path
) -> None:
    config, shape, rng = case(name, channels_first)
    kernel, bias = weights(config, shape, rng)
    tap = tuple((size - 1) // 2 for size in config.kernel_size)
    kernel[(*tap, 0, 0)], kernel[(*tap, 1, 1)] = np.nan, np.inf
    x = rng.uniform(0.1, 1.0, shape).astype(np.float32)
    artifact = compiled(config, shape, [kernel, bias], tmp_path)
    y = artifact.load()(x)
    expected = conv3d_transpose(config, x, kernel, bias)
    assert np.isnan(expected).any()
    assert np.isinf(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_a_kernel_that_overflows_in_the_compute_dtype_is_infinite(
    dtype: str, tmp_path: Path
) -> None:
    config, shape, rng = case("same", False, dtype=dtype)
    kernel, bias = weights(config, shape, rng)
    kernel[2, 2, 2, 0, 0] = 3.4e38  # Above the largest number of both, and a tap at the border.
    x = rng.uniform(0.1, 1.0, shape).astype(numpy_dtype(config.compute_dtype))
    y = compiled(config, shape, [kernel, bias], tmp_path).load()(x).astype(np.float64)
    expected = conv3d_transpose(config, x, kernel, bias)
    assert np.isinf(expected).any()
    assert (np.isinf(y) == np.isinf(expected)).all()
    assert not np.isnan(y).any()


def test_a_finite_kernel_does_not_pay_for_it(tmp_path: Path) -> None:
    config, shape, rng = case("same", False)
    kernel, bias = weights(config, shape, rng)
    usual = compiled(config, shape, [kernel, bias], tmp_path / "a")
    assert usual.manifest.schedule["form"] == "phase"
    assert (usual.manifest.nonfinite, usual.manifest.weights["nonfinite"]) == ("exact", "row-ends")
    kernel[0, 0, 0, 0, 0] = np.inf
    spoilt = compiled(config, shape, [kernel, bias], tmp_path / "b")
    assert spoilt.manifest.schedule["form"] == "definition"
    assert (spoilt.manifest.nonfinite, spoilt.manifest.weights["nonfinite"]) == ("exact", "exact")
    bias[0] = np.nan  # Reaches every voxel of its filter in every form.
    kernel[0, 0, 0, 0, 0] = 1.0
    artifact = compiled(config, shape, [kernel, bias], tmp_path / "c")
    assert artifact.manifest.schedule["form"] == "phase"
    y = artifact.load()(rng.standard_normal(shape).astype(np.float32))
    assert np.isnan(y[..., 0]).all()
    assert np.isfinite(y[..., 1:]).all()


@pytest.mark.parametrize("form", ["columns", "dots", "phase", "voxel"])
@pytest.mark.parametrize("name", LAYERS)
def test_kernels_given_at_run_time_spread_as_far_as_the_manifest_says(name: str, form: str) -> None:
    """Every tap in turn is NaN: what it must reach, and what it may reach beyond that."""
    config, shape, rng = case(name, False)
    tiling = tiling_of(form, config, shape)
    if tiling is None:  # See above.
        assert tiling_of("default", config, shape) is not None
        return
    kernel, bias = weights(config, shape, rng)
    built = Kernel(config, shape, tiling=tiling)
    said = built.lowered.weights_nonfinite
    x = rng.uniform(0.1, 1.0, shape).astype(np.float32)
    spread = False
    for tap in itertools.product(*(range(size) for size in config.kernel_size)):
        spoilt = kernel.copy()
        spoilt[(*tap, 1, 0)] = np.nan
        y, expected = built(x, spoilt, bias), conv3d_transpose(config, x, spoilt, bias)
        beyond = np.isnan(y) & ~np.isnan(expected)
        assert np.isnan(y[np.isnan(expected)]).all()
        assert not np.delete(beyond, 1, axis=-1).any()
        spread |= bool(beyond.any())
    # Ends of short rows leave the border out: what is said is the most that it spreads.
    assert not spread or said == "row-ends"


def test_kernels_that_are_set_later_have_nan_where_the_definition_has() -> None:
    config, shape, rng = case("same", False)
    kernel, bias = weights(config, shape, rng)
    kernel[0, 1, 0, 1, 0] = np.nan
    layer = tvmconv.Conv3DTranspose.from_config(config)
    layer.build(shape)
    layer.set_weights([kernel, bias])
    x = rng.uniform(0.1, 1.0, shape).astype(np.float32)
    y, expected = layer(x), conv3d_transpose(config, x, kernel, bias)
    assert np.isnan(y[np.isnan(expected)]).all()
    # More NaN are allowed where the border meets that tap, but in its filter only.
    assert np.isfinite(np.delete(y, 1, axis=-1)).all()
