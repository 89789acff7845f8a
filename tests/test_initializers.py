"""Initializers: distributions, fans, names, stored forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tvmconv.errors import ConfigError, ConfigTypeError
from tvmconv.initializers import Initializer, compute_fans, get

SHAPE = (3, 3, 3, 8, 16)  # A kernel: Keras counts 8 filters as input, 16 channels as output.
FAN_IN, FAN_OUT = 27 * 8, 27 * 16


def known(value: Any) -> Initializer:
    found = get(value)
    assert found is not None
    return found


def stored(class_name: str, **config: Any) -> dict[str, Any]:
    return {"module": "keras.initializers", "class_name": class_name, "config": config}


def test_fans_of_a_kernel() -> None:
    assert compute_fans(SHAPE) == (FAN_IN, FAN_OUT)
    assert compute_fans((5,)) == (5, 5)
    assert compute_fans(SHAPE, [4], [3]) == (16, 8)


@pytest.mark.parametrize(
    ("name", "fan", "gain"),
    [
        ("glorot_uniform", (FAN_IN + FAN_OUT) / 2, 1.0),
        ("he_uniform", FAN_IN, 2.0),
        ("lecun_uniform", FAN_IN, 1.0),
    ],
)
def test_uniform_limits(name: str, fan: float, gain: float) -> None:
    values = known(name)(SHAPE)
    limit = math.sqrt(3 * gain / fan)
    assert values.dtype == np.float32
    assert np.abs(values).max() <= limit
    assert np.abs(values).max() > 0.95 * limit
    assert abs(values.mean()) < 0.1 * limit


@pytest.mark.parametrize(
    ("name", "fan", "gain"),
    [
        ("glorot_normal", (FAN_IN + FAN_OUT) / 2, 1.0),
        ("he_normal", FAN_IN, 2.0),
        ("lecun_normal", FAN_IN, 1.0),
    ],
)
def test_truncated_normal_spread(name: str, fan: float, gain: float) -> None:
    values = known(stored("".join(part.capitalize() for part in name.split("_")), seed=1))(SHAPE)
    spread = math.sqrt(gain / fan)
    assert values.std() == pytest.approx(spread, rel=0.1)
    assert np.abs(values).max() <= 2 * spread / 0.87962566103423978 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("value", "mean", "spread"),
    [
        (stored("RandomNormal", mean=1.0, stddev=0.5, seed=3), 1.0, 0.5),
        (stored("RandomUniform", minval=0.0, maxval=2.0, seed=3), 1.0, 2 / math.sqrt(12)),
        (stored("TruncatedNormal", mean=-1.0, stddev=0.5, seed=3), -1.0, 0.5 * 0.8796),
        (
            stored("VarianceScaling", distribution="untruncated_normal", seed=3),
            0.0,
            math.sqrt(1 / FAN_IN),
        ),
    ],
)
def test_plain_distributions(value: dict[str, Any], mean: float, spread: float) -> None:
    values = known(value)(SHAPE, "float64")
    assert values.mean() == pytest.approx(mean, abs=0.1 * spread)
    assert values.std() == pytest.approx(spread, rel=0.1)


def test_constants() -> None:
    np.testing.assert_array_equal(known("zeros")((2, 2)), np.zeros((2, 2)))
    np.testing.assert_array_equal(known("Ones")((2,)), np.ones(2))
    np.testing.assert_array_equal(known(stored("Constant", value=2.5))((3,)), np.full(3, 2.5))
    array = {"class_name": "__numpy__", "config": {"value": [1.0, 2.0], "dtype": "float32"}}
    np.testing.assert_array_equal(known(stored("Constant", value=array))((2,)), [1.0, 2.0])
    with pytest.raises(ConfigError, match="a number or an array that fits"):
        known(stored("Constant", value=[1.0, 2.0]))((3,))


@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 50)])
def test_orthogonal(shape: tuple[int, ...]) -> None:
    matrix = known(stored("Orthogonal", gain=2.0, seed=0))(shape, "float64")
    matrix = matrix.reshape(-1, shape[-1])
    product = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    np.testing.assert_allclose(product, 4 * np.eye(len(product)), atol=1e-12)


@pytest.mark.parametrize("name", ["identity", "stft"])
def test_initializers_for_other_ranks_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="can only be used for"):
        known(name)(SHAPE)


def test_a_seed_repeats_and_no_seed_does_not() -> None:
    seeded = known(stored("GlorotUniform", seed=-7))
    np.testing.assert_array_equal(seeded(SHAPE), seeded(SHAPE))
    free = known("glorot_uniform")
    assert not np.array_equal(free(SHAPE), free(SHAPE))


def test_bfloat16() -> None:
    assert known("he_normal")((4, 4), "bfloat16").dtype.name == "bfloat16"


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("glorot_uniform", "GlorotUniform"),
        ("GlorotUniform", "GlorotUniform"),
        ("zero", "Zeros"),
        ("one", "Ones"),
        ("normal", "RandomNormal"),
        ("uniform", "RandomUniform"),
        ("OrthogonalInitializer", "Orthogonal"),
    ],
)
def test_names(name: str, class_name: str) -> None:
    form = known(name).serialize()
    assert form["class_name"] == class_name
    assert known(form) == known(name)


def test_missing_arguments_get_their_defaults() -> None:
    form = known({"class_name": "GlorotUniform", "config": {"seed": None}}).serialize()
    assert form == {
        "module": "keras.initializers",
        "class_name": "GlorotUniform",
        "config": {"seed": None, "input_axes": None, "output_axes": None},
        "registered_name": None,
    }


def test_normal_is_an_old_name_of_a_distribution() -> None:
    form = known(stored("VarianceScaling", distribution="Normal")).serialize()
    assert form["config"]["distribution"] == "truncated_normal"


def test_a_custom_class_is_kept_but_not_run() -> None:
    form = {
        "module": "my_pkg.inits",
        "class_name": "Fancy",
        "config": {"a": [1]},
        "registered_name": "Custom>Fancy",
    }
    initializer = known(form)
    assert initializer.serialize() == form
    assert not initializer.drawable
    with pytest.raises(ConfigError, match="Fancy is not one of Keras'"):
        initializer((2,))


def test_arrays_and_callables_draw_themselves() -> None:
    np.testing.assert_array_equal(known(np.arange(3.0))((3,)), [0, 1, 2])
    with pytest.raises(ConfigError, match=r"Expected `shape` to be \(3,\)"):
        known(np.arange(3.0))((4,))

    def sevens(shape: tuple[int, ...], dtype: str | None = None) -> np.ndarray:
        return np.full(shape, 7.0, dtype)

    np.testing.assert_array_equal(known(sevens)((2, 2)), np.full((2, 2), 7.0))
    assert known(sevens).serialize()["config"] == "sevens"


def test_none_stays_none() -> None:
    assert get(None) is None


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ("nope", ConfigError, "Could not interpret initializer identifier: nope"),
        (3, ConfigError, "Could not interpret initializer identifier: 3"),
        ({"a": 1}, ConfigError, "Unknown `config` as a `dict`"),
        ("constant", ConfigError, "Constant initializer needs a `value`"),
        (stored("GlorotUniform", seed="x"), ConfigError, "`seed` argument should be"),
        (stored("GlorotUniform", foo=1), ConfigTypeError, "unexpected keyword argument 'foo'"),
        (stored("VarianceScaling", scale=0), ConfigError, "`scale` must be positive"),
        (stored("VarianceScaling", mode="fan"), ConfigError, "Invalid `mode` argument: fan"),
        (stored("VarianceScaling", distribution="x"), ConfigError, "Invalid `distribution`"),
    ],
)
def test_refused(value: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        get(value)
