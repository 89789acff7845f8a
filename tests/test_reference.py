"""The reference against every golden case, and the exactness it promises."""

from __future__ import annotations

import numpy as np
import pytest
from golden_files import Case, assert_close, cases, entries, ids, mismatch

from tvmconv.config import LayerConfig
from tvmconv.errors import InputError
from tvmconv.reference import conv3d_transpose


@pytest.mark.parametrize("case", cases(), ids=str)
def test_equals_the_golden_definition(case: Case) -> None:
    out = conv3d_transpose(case.config, case.x, case.arrays["kernel"], case.bias)
    assert out.dtype == np.float64
    assert_close(out, case, dtype=False)


@pytest.mark.parametrize("case", cases(), ids=str)
def test_equals_the_backend_output(case: Case) -> None:
    out = conv3d_transpose(case.config, case.x, case.arrays["kernel"], case.bias)
    y, entry = case.arrays["y"], case.entry
    superset = entry["compare"] == "nan_superset"
    wrong = mismatch(y, out, entry["atol"], entry["rtol"], extra_nan=superset)
    assert not wrong.any()


@pytest.mark.parametrize("entry", entries("shapes.json"), ids=ids(entries("shapes.json")))
def test_output_shape(entry: dict) -> None:
    keys = ("filters", "kernel_size", "strides", "padding", "output_padding", "data_format")
    config = LayerConfig(
        **{key: entry[key] for key in keys}, dilation_rate=entry["dilation_rate"], use_bias=False
    )
    shape = [5 if size is None else size for size in entry["input_shape"]]
    shape[0] = 0  # Sizes need no values.
    kernel = np.zeros(config.kernel_shape(shape[config.channel_axis]), np.float32)
    out = conv3d_transpose(config, np.zeros(shape, np.float32), kernel, None)
    for size, expected in zip(out.shape[1:], entry["output_shape"][1:], strict=True):
        assert expected is None or size == expected


def test_a_nan_voxel_reaches_its_window_and_nothing_else() -> None:
    config = LayerConfig(2, 3, 2, "same", use_bias=False)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 4, 4, 4, 3)).astype(np.float32)
    kernel = rng.standard_normal(config.kernel_shape(3)).astype(np.float32)
    kernel[0, 0, 0] = 0.0  # A zero weight still makes a NaN of a NaN.
    x[0, 2, 1, 1, 0] = np.nan
    nan = np.isnan(conv3d_transpose(config, x, kernel, None))
    expected = np.zeros_like(nan)
    expected[0, 4:7, 2:5, 2:5] = True
    np.testing.assert_array_equal(nan, expected)


def test_infinity_times_a_zero_weight_is_nan() -> None:
    config = LayerConfig(1, 1, use_bias=False)
    x = np.array([np.inf, 1.0], np.float32).reshape(1, 1, 1, 2, 1)
    out = conv3d_transpose(config, x, np.zeros((1, 1, 1, 1, 1), np.float32), None)
    assert np.isnan(out[0, 0, 0, 0, 0])
    assert out[0, 0, 0, 1, 0] == 0.0


def test_the_holes_of_a_wide_stride_hold_the_activated_bias() -> None:
    config = LayerConfig(2, 1, 3, activation="relu")
    bias = np.array([1.5, -1.0], np.float32)
    x = np.full((1, 2, 2, 2, 1), 7.0, np.float32)
    out = conv3d_transpose(config, x, np.ones(config.kernel_shape(1), np.float32), bias)
    assert out.shape == (1, 6, 6, 6, 2)
    np.testing.assert_array_equal(out[0, 1, 1, 1], [1.5, 0.0])
    np.testing.assert_array_equal(out[0, 3, 3, 0], [8.5, 6.0])


def test_operands_are_rounded_to_the_compute_dtype() -> None:
    config = LayerConfig(1, 1, use_bias=False, dtype="mixed_bfloat16")
    x = np.full((1, 1, 1, 1, 1), 1.0 + 2.0**-9)  # Rounds to 1 in bfloat16.
    out = conv3d_transpose(config, x, np.full((1, 1, 1, 1, 1), 3.0), None)
    assert out.item() == 3.0


def test_a_negative_output_size_is_refused() -> None:
    config = LayerConfig(1, 1, 3, output_padding=0)
    x = np.zeros((1, 0, 1, 1, 1), np.float32)
    with pytest.raises(InputError, match="output length -2"):
        conv3d_transpose(config, x, np.zeros((1, 1, 1, 1, 1), np.float32), None)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    config = LayerConfig(1, 1)
    with pytest.raises(InputError, match="does not fit a kernel"):
        conv3d_transpose(config, np.zeros((1, 1, 1, 1, 2)), np.zeros((1, 1, 1, 1, 1)), None)
