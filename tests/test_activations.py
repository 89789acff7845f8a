"""Activations: formulas, special values, names, stored forms and live Keras objects."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden_files import GOLDEN, entries, ids, mismatch, unpack

from tvmconv.activations import ALIASES, FUNCTIONS, LINEAR, Activation, deserialize
from tvmconv.errors import ConfigError, ConfigTypeError

ENTRIES = entries("activations.json")


def arrays(entry: dict[str, Any]) -> dict[str, np.ndarray]:
    return unpack(GOLDEN / "activations.npz", entry["arrays"], f"{entry['id']}_")


def layer(class_name: str, **config: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": class_name,
        "config": config,
        "registered_name": None,
    }


@pytest.mark.parametrize("entry", ENTRIES, ids=ids(ENTRIES))
def test_plain_values(entry: dict[str, Any]) -> None:
    members = arrays(entry)
    out = Activation(entry["name"], tuple(entry["args"].items())).evaluate(members["x"])
    for expected in (members["y_ref"], members["y"]):
        assert out.shape == expected.shape
        assert not mismatch(out, expected, entry["atol"], entry["rtol"]).any()


@pytest.mark.parametrize("entry", ENTRIES, ids=ids(ENTRIES))
def test_special_values_where_the_backends_agree(entry: dict[str, Any]) -> None:
    members = arrays(entry)
    x, agree = members["special_x"], members["special_agree"]
    out = Activation(entry["name"], tuple(entry["args"].items())).evaluate(x)
    atol: Any = entry["atol"]
    if entry["name"] == "squareplus":  # x + sqrt(x*x + b) cancels in the dtype of the backends.
        wide = x.astype(np.float64)
        atol = atol + np.where(np.isfinite(wide), np.abs(wide), 0) * 2.0**-24
    if entry["name"] == "sparsemax":  # The backends lose the support where max - 1 rounds to max.
        top = x.max(axis=entry["args"]["axis"], keepdims=True)
        agree = agree & (top - np.asarray(1, x.dtype) != top)
    wrong = mismatch(out, members["special_y"], atol, entry["rtol"])
    assert not wrong[agree].any()
    assert agree.any()


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"threshold"}))
def test_every_name_is_read_written_and_evaluated(name: str) -> None:
    activation = deserialize(name)
    assert activation.serialize() == name
    assert deserialize(activation.serialize()) == activation
    x = np.linspace(-3, 3, 24).reshape(1, 2, 3, 4)
    out = activation.evaluate(x)
    assert out.dtype == np.float64
    assert np.isfinite(out).all()
    assert (activation.axes is None) == (name not in ("glu", "log_softmax", "softmax", "sparsemax"))


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_aliases_are_replaced(alias: str, name: str) -> None:
    assert deserialize(alias).serialize() == name


def test_none_is_linear() -> None:
    assert deserialize(None) == LINEAR == deserialize("linear")


def test_a_serialised_function_is_its_name() -> None:
    stored = {"module": "builtins", "class_name": "function", "config": "swish"}
    assert deserialize(stored) == Activation("silu")


@pytest.mark.parametrize(
    ("stored", "name", "args"),
    [
        (layer("ReLU", max_value=6.0), "relu", {"max_value": 6.0}),
        (layer("ReLU", negative_slope=0.1, threshold=1), "relu", {"negative_slope": 0.1}),
        (layer("LeakyReLU"), "leaky_relu", {"negative_slope": 0.3}),
        (layer("LeakyReLU", alpha=0.25), "leaky_relu", {"negative_slope": 0.25}),
        (layer("ELU", alpha=0.7), "elu", {"alpha": 0.7}),
        (layer("Softmax"), "softmax", {"axis": -1}),
        (layer("Softmax", axis=[1, 2]), "softmax", {"axis": (1, 2)}),
        (layer("Activation", activation="mish"), "mish", {}),
    ],
)
def test_activation_layers(stored: dict[str, Any], name: str, args: dict[str, Any]) -> None:
    activation = deserialize(stored)
    assert activation.name == name
    assert args.items() <= activation.arguments.items()
    assert activation.policy == "float32"
    assert deserialize(activation.serialize()) == activation


def test_an_activation_layer_keeps_its_name_and_policy() -> None:
    dtype = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "mixed_float16"}}
    activation = deserialize(layer("ELU", name="e", trainable=False, dtype=dtype))
    config = activation.serialize()["config"]  # type: ignore[index]
    assert list(config) == ["name", "trainable", "dtype", "alpha"]
    assert (config["name"], config["trainable"], activation.policy) == (
        "e",
        False,
        "mixed_float16",
    )


@pytest.mark.parametrize(
    ("stored", "error", "match"),
    [
        ("ReLU", ConfigError, "Could not interpret activation function identifier: ReLU"),
        (1, ConfigError, "Could not interpret activation function identifier: 1"),
        ("threshold", ConfigTypeError, "missing 2 required positional arguments"),
        ({"foo": 1}, ConfigError, r"identifier: \{'foo': 1\}"),
        (layer("PReLU"), ConfigTypeError, "Could not locate class 'PReLU'"),
        (layer("ReLU", max_value=-1), ConfigError, "max_value of a ReLU layer cannot be"),
        (layer("ReLU", threshold=None), ConfigError, "threshold of a ReLU layer cannot be None"),
        (layer("ReLU", foo=1), ConfigError, "Unrecognized keyword arguments passed to ReLU"),
        (layer("LeakyReLU", negative_slope=-1), ConfigError, "Leaky ReLU layer cannot be None"),
        (layer("ELU", alpha="1"), ConfigError, "alpha of an ELU layer must be a number"),
        (layer("ELU", alpha=10**400), ConfigError, "alpha of an ELU layer must be a number"),
        (layer("Softmax", axis=True), ConfigError, "axis of a Softmax layer must be"),
        (layer("Softmax", axis=[]), ConfigError, "axis of a Softmax layer must be"),
        (layer("Activation", activation=layer("ELU")), ConfigError, "name of an activation"),
        (layer("ELU", dtype="uint8"), ConfigError, "Cannot convert 'uint8'"),
        (layer("ELU", name=3), ConfigError, "needs a string as name"),
        ({"class_name": "LeakyReLU", "config": {}}, ConfigTypeError, "locate class 'LeakyReLU'"),
        (
            {**layer("LeakyReLU"), "registered_name": "pkg>LeakyReLU"},
            ConfigTypeError,
            "Could not locate class",
        ),
        ({**layer("ReLU"), "module": "os"}, ConfigTypeError, "Could not locate class 'ReLU'"),
        (
            {"module": "os", "class_name": "function", "config": "system"},
            ConfigTypeError,
            "Could not locate function 'system'",
        ),
        (
            {"module": "builtins", "class_name": "function", "config": "eval"},
            ConfigTypeError,
            "Could not locate function 'eval'",
        ),
        (
            {"class_name": "__lambda__", "config": {"value": "4wEA"}},
            ConfigError,
            "never decoded",
        ),
    ],
)
def test_refused(stored: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match) as raised:
        deserialize(stored)
    assert "\n" not in str(raised.value)


def test_a_file_may_leave_out_the_module_of_an_activation_layer() -> None:
    stored = {"class_name": "LeakyReLU", "config": {"alpha": 0.1}}
    assert deserialize(stored, strict_file=True).arguments == {"negative_slope": 0.1}


def test_a_custom_callable_is_named() -> None:
    def wobble(x: np.ndarray) -> np.ndarray:
        return x

    with pytest.raises(ConfigError, match="'wobble' is a Python callable and cannot be compiled"):
        deserialize(wobble)


def test_a_live_keras_function_is_known_by_its_module_and_name() -> None:
    def relu(x: np.ndarray) -> np.ndarray:
        return x

    relu.__module__ = "keras.src.activations.activations"
    assert deserialize(relu) == Activation("relu")


def test_a_live_keras_layer_is_asked_for_its_config() -> None:
    config = {"name": "act", "trainable": True, "dtype": "float64", "negative_slope": 0.5}
    cls = type("LeakyReLU", (SimpleNamespace,), {"get_config": lambda self: config})
    cls.__module__ = "keras.src.layers.activations.leaky_relu"
    activation = deserialize(cls())
    assert (activation.name, activation.policy) == ("leaky_relu", "float64")
    assert activation.arguments == {"negative_slope": 0.5}


def test_arguments_without_a_stored_form_are_not_lost_silently() -> None:
    with pytest.raises(ConfigError, match="no stored form"):
        Activation("elu", (("alpha", 2.0),)).serialize()


def test_unknown_arguments_are_refused() -> None:
    with pytest.raises(ConfigTypeError, match="unexpected keyword argument 'beta'"):
        Activation("elu", (("beta", 2.0),))
    with pytest.raises(ConfigError, match="identifier: nope"):
        Activation("nope")


def test_glu_over_an_odd_axis_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"x.shape=\(1, 3\) with axis=-1"):
        Activation("glu").evaluate(np.zeros((1, 3)))


def test_softmax_over_an_axis_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="axis 4 is out of range"):
        Activation("softmax", (("axis", 4),)).evaluate(np.zeros((1, 3)))
