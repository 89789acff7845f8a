"""`Conv3DTranspose`: Keras' errors at every stage, and that none of them comes after compiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fake_cache import FakeCompiled, install
from golden_files import entries, ids

from tvmconv.errors import ConfigError, InputError, TvmconvError, WeightsError
from tvmconv.runtime.layer import Conv3DTranspose

ERRORS = [entry for entry in entries("errors.json") if entry["stage"] != "ctor"]


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[FakeCompiled]:
    """The layers compiled so far, in order."""
    return install(monkeypatch)


def tuples(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}


def x_of(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(dtype)


def fail(entry: dict[str, Any]) -> Conv3DTranspose | None:
    """Do what an entry of errors.json describes; return the layer that it was done to."""
    stage = entry["stage"]
    if stage == "from_config":
        Conv3DTranspose.from_config(entry["kwargs"])
        return None
    layer = Conv3DTranspose(**tuples(entry["kwargs"]))
    if "build_shape" in entry:
        layer.build(entry["build_shape"])
    actions: dict[str, Callable[[], Any]] = {
        "build": lambda: layer.build(entry["input_shape"]),
        "call": lambda: layer(np.ones(entry["input_shape"], entry.get("input_dtype", "float32"))),
        "set_weights": lambda: layer.set_weights([np.zeros(s) for s in entry["weight_shapes"]]),
        "load_own_variables": lambda: layer.load_own_variables(
            {key: np.zeros(shape) for key, shape in entry["store"].items()}
        ),
    }
    actions[stage]()
    return layer


@pytest.mark.parametrize("entry", ERRORS, ids=ids(ERRORS))
def test_golden_errors(entry: dict[str, Any], compiled: list[FakeCompiled]) -> None:
    expected = {"ValueError": ValueError, "TypeError": TypeError}
    with pytest.raises(expected[entry["expected_type"].removeprefix("builtins.")]) as raised:
        fail(entry)
    assert isinstance(raised.value, TvmconvError)
    for text in entry["match"]:
        assert text in str(raised.value)
    assert not compiled


def test_python_words_for_wrong_argument_counts() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'kernel_size'"):
        Conv3DTranspose(2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="takes from 3 to 17 positional arguments but 18 were"):
        Conv3DTranspose(*range(1, 18))  # type: ignore[misc]


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((2, 2, 2, 3), "expected min_ndim=5, found ndim=4. Full shape received: (2, 2, 2, 3)"),
        ((1, 2, 2, 2, 4), "expected axis -1 of input shape to have value 3, but received input"),
        ((1, 1, 2, 2, 2, 3), "Input rank not supported: 6."),
    ],
)
def test_inputs_that_do_not_fit(
    shape: tuple[int, ...], text: str, compiled: list[FakeCompiled]
) -> None:
    layer = Conv3DTranspose(2, 3, name="up")
    layer.build((None, None, None, None, 3))
    with pytest.raises(InputError) as raised:
        layer(x_of(*shape))
    assert text in str(raised.value)
    assert not compiled
    assert layer(x_of(1, 2, 2, 2, 3)).shape == (1, 4, 4, 4, 2)  # It stays usable.


def test_other_inputs_that_are_refused(compiled: list[FakeCompiled]) -> None:
    layer = Conv3DTranspose(3, 3, activation="glu")
    with pytest.raises(InputError, match=r"x.shape=\(1, 4, 4, 4, 3\) with axis=-1"):
        layer(x_of(1, 2, 2, 2, 3))
    with pytest.raises(InputError, match="complex64"):
        Conv3DTranspose(2, 3)(np.ones((1, 2, 2, 2, 3), np.complex64))
    with pytest.raises(InputError, match=r"Got 'None' .* as input for layer 'up'"):
        Conv3DTranspose(2, 3, name="up")(None)
    with pytest.raises(InputError, match="Only input tensors"):
        Conv3DTranspose(2, 3)([[1.0], [1.0, 2.0]])
    with pytest.raises(InputError, match="negative size"):
        Conv3DTranspose(2, 1, 3, output_padding=0)(x_of(1, 0, 1, 1, 3))
    with pytest.raises(ConfigError, match="at least one channel"):
        Conv3DTranspose(2, 3)(x_of(1, 2, 2, 2, 0))
    assert not compiled


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ((1, 2, 2, 2, None), "(no `None` dimensions). Received: shape=(3, 3, 3, 2, None) for "
                             "variable path='up/kernel'"),
        ((1, 2, 2, 2, -1), "Cannot convert '(3, 3, 3, 2, -1)' to a shape. Negative dimensions"),
        ((1, 2, 2, 2, "3"), "Found invalid dimension '3' of type '<class 'str'>'."),
        ((), "must have 5 sizes"),
        (None, "must have 5 sizes"),
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_built(shape: Any, text: str) -> None:
    layer = Conv3DTranspose(2, 3, name="up")
    with pytest.raises(ConfigError) as raised:
        layer.build(shape)
    assert text in str(raised.value)
    assert not layer.built
    layer.build((None, None, None, None, 3))
    assert layer.kernel.shape == (3, 3, 3, 2, 3)


def test_a_layer_is_built_once() -> None:
    layer = Conv3DTranspose(2, 3)
    assert layer.get_build_config() is None
    layer.build_from_config({})
    layer.build_from_config({"input_shape": [None, 4, 4, 4, 3]})
    assert layer.get_build_config() == {"input_shape": (None, 4, 4, 4, 3)}
    with pytest.raises(ConfigError, match="to a layer that is already built"):
        layer.build((None, 4, 4, 4, 3))


def test_before_it_is_built() -> None:
    layer = Conv3DTranspose(2, 3, name="up")
    assert layer.get_weights() == [] == layer.weights
    with pytest.raises(ConfigError, match="call `count_params` on layer 'up', but the layer isn't"):
        layer.count_params()
    with pytest.raises(ConfigError, match="has not been built"):
        _ = layer.kernel
    with pytest.raises(WeightsError, match="of length 1, but the layer was expecting 0 weights"):
        layer.set_weights([np.zeros(1)])
    layer.load_own_variables({})


@pytest.mark.parametrize("dtype", [np.complex64, object])
def test_weights_that_are_no_real_numbers_are_refused(dtype: Any) -> None:
    layer = Conv3DTranspose(2, 1, use_bias=False)
    layer.build((1, 2, 2, 2, 3))
    before = layer.get_weights()
    with pytest.raises(WeightsError, match="must be real numbers"):
        layer.set_weights([np.zeros((1, 1, 1, 2, 3), dtype)])
    np.testing.assert_array_equal(layer.kernel, before[0])
