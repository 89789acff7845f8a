"""`LayerConfig`: every golden config, the constructor's errors and their order, policies."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from golden_files import Case, cases, entries, ids

from tvmconv import geometry
from tvmconv.config import LayerConfig, build_shape, from_serialized
from tvmconv.errors import ConfigError, ConfigTypeError
from tvmconv.policies import parse

CONFIGS = entries("configs.json")
CONSTRUCTED = [entry for entry in CONFIGS if entry["kind"] == "constructor"]
STORED = [entry for entry in CONFIGS if entry["kind"] == "from_config"]
CTOR_ERRORS = [entry for entry in entries("errors.json") if entry["stage"] == "ctor"]
SHAPES = entries("shapes.json")

KEYS = [
    *("name", "trainable", "dtype", "filters", "kernel_size", "strides", "padding"),
    *("output_padding", "data_format", "dilation_rate", "activation", "use_bias"),
    *("kernel_initializer", "bias_initializer", "kernel_regularizer", "bias_regularizer"),
    *("activity_regularizer", "kernel_constraint", "bias_constraint"),
]


def tuples(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Lists of the golden data stand for tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in kwargs.items()}


def test_every_kind_of_config_entry_is_tested() -> None:
    assert len(CONSTRUCTED) + len(STORED) == len(CONFIGS)


@pytest.mark.parametrize("entry", CONSTRUCTED, ids=ids(CONSTRUCTED))
def test_constructor_gives_keras_config(entry: dict[str, Any]) -> None:
    config = LayerConfig(**{"name": entry["id"], **tuples(entry["kwargs"])})
    assert config.get_config() == entry["config"]
    assert list(config.get_config()) == KEYS
    again = LayerConfig.from_keras(entry["config"])
    assert again == config
    assert hash(again) == hash(config)
    assert LayerConfig.from_keras(entry["config"], strict_file=True) == config
    assert from_serialized(entry["serialized"]) == config
    assert build_shape(entry["serialized"]) == tuple(
        entry["serialized"]["build_config"]["input_shape"]
    )


@pytest.mark.parametrize("strict_file", [False, True], ids=["direct", "file"])
@pytest.mark.parametrize("entry", STORED, ids=ids(STORED))
def test_stored_config(entry: dict[str, Any], strict_file: bool) -> None:
    if entry["expect"] == "refuse":
        with pytest.raises(ConfigError):
            LayerConfig.from_keras(entry["input"], strict_file=strict_file)
        return
    before = copy.deepcopy(entry["input"])
    config = LayerConfig.from_keras(entry["input"], strict_file=strict_file)
    assert entry["input"] == before
    if entry["expect"] == "accept":
        assert config.get_config() == entry["config"]
    else:  # Either: a custom initializer, which is kept as it is.
        assert config.get_config()["kernel_initializer"] == before["kernel_initializer"]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_config_of_a_case_comes_back(case: Case) -> None:
    assert case.config.get_config() == case.entry["config"]
    assert json.loads(json.dumps(case.config.get_config())) == case.entry["config"]
    assert case.config.compute_dtype == case.entry["compute_dtype"]
    assert case.config.variable_dtype == case.entry["variable_dtype"]
    assert case.config.output_dtype == case.entry["output_dtype"]
    shape = case.entry["input_shape"]
    assert [list(s) for s in case.config.weight_shapes(shape[case.config.channel_axis])] == [
        weight["shape"] for weight in case.entry["weights"]
    ]


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_arguments_of_a_case_give_its_config(case: Case) -> None:
    config = LayerConfig(**tuples(case.entry["kwargs"])).get_config()
    expected = copy.deepcopy(case.entry["config"])
    for one in (config, expected):  # Names are numbered by Keras; here only the layer class does.
        del one["name"]
        if isinstance(one["activation"], dict):
            del one["activation"]["config"]["name"]
    assert config == expected


@pytest.mark.parametrize("entry", CTOR_ERRORS, ids=ids(CTOR_ERRORS))
def test_constructor_errors(entry: dict[str, Any]) -> None:
    expected = {"ValueError": ValueError, "TypeError": TypeError}
    with pytest.raises(expected[entry["expected_type"].removeprefix("builtins.")]) as raised:
        LayerConfig(**tuples(entry["kwargs"]))
    assert isinstance(raised.value, ConfigError)
    for text in entry["match"]:
        assert text in str(raised.value)


@pytest.mark.parametrize("entry", SHAPES, ids=ids(SHAPES))
def test_output_shape(entry: dict[str, Any]) -> None:
    keys = ("filters", "kernel_size", "strides", "padding", "output_padding", "data_format")
    config = LayerConfig(**{key: entry[key] for key in keys}, dilation_rate=entry["dilation_rate"])
    assert geometry.output_shape(config, entry["input_shape"]) == entry["output_shape"]


@pytest.mark.parametrize(
    "value",
    [3, (3, 3, 3), [3, 3, 3], np.array([3, 3, 3]), {3: 0, 4: 0, 5: 0}, range(3, 6)],
    ids=["int", "tuple", "list", "array", "dict", "range"],
)
def test_forms_of_three_integers(value: Any) -> None:
    kernel_size = LayerConfig(2, value).kernel_size
    assert kernel_size in ((3, 3, 3), (3, 4, 5))
    assert all(type(size) is int for size in kernel_size)


def test_numpy_filters_become_an_int() -> None:
    assert type(LayerConfig(np.int64(2), 3).filters) is int


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"kernel_size": np.int64(2)}, ConfigError, "Received kernel_size=2"),
        (
            {"kernel_size": "123"},
            ConfigTypeError,
            "'<=' not supported between instances of 'str' and 'int'",
        ),
        ({"filters": "2"}, ConfigTypeError, "'<=' not supported between instances of 'str'"),
        ({"filters": np.array([1, 2])}, ConfigError, "`filters` must be one integer"),
        ({"filters": False}, ConfigError, "Received filters=False."),
        (
            {"output_padding": ("0", "0", "0")},
            ConfigTypeError,
            "'<' not supported between instances of 'str' and 'int'",
        ),
        (
            {"strides": (2, 1, 1), "dilation_rate": (1, 1, 3)},
            ConfigError,
            "`strides > 1` not supported in conjunction with `dilation_rate > 1`. "
            "Received: strides=(2, 1, 1) and dilation_rate=(1, 1, 3)",
        ),
        ({"padding": None}, ConfigError, "The `padding` argument must be"),
        ({"padding": ["valid"]}, ConfigError, "The `padding` argument must be"),
        ({"groups": 1}, ConfigError, "passed to Conv3DTranspose: {'groups': 1}"),
        ({"trainable": 1}, ConfigError, "Received: trainable=1 (of type <class 'int'>)"),
        ({"name": 3}, ConfigError, "Received: name=3 (of type <class 'int'>)"),
        ({"kernel_regularizer": "nope"}, ConfigError, "interpret regularizer identifier: nope"),
        ({"bias_regularizer": 3}, ConfigError, "interpret regularizer identifier: 3"),
        ({"kernel_constraint": "nope"}, ConfigError, "interpret constraint identifier: nope"),
        ({"bias_constraint": {"a": 1}}, ConfigError, "Unknown `config` as a `dict`"),
        (
            {"kernel_regularizer": {"class_name": "L2", "config": {"l2": -1}}},
            ConfigError,
            "Invalid value for argument l2",
        ),
        (
            {
                "activation": {
                    "module": "keras.layers",
                    "class_name": "Softmax",
                    "config": {"axis": 5},
                }
            },
            ConfigError,
            "must be different axes of a tensor of rank 5",
        ),
        ({"dtype": "half"}, ConfigError, "Cannot convert 'half'"),
        ({"dtype": "int8_from_float32"}, ConfigError, "Cannot convert 'int8_from_float32'"),
        ({"dtype": np.int32}, ConfigError, "Cannot convert 'int32'"),
        ({"dtype": object()}, ConfigError, "Cannot interpret `dtype` argument"),
    ],
)
def test_more_errors(kwargs: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as raised:
        LayerConfig(**{"filters": 2, "kernel_size": 3, **kwargs})
    assert text in str(raised.value)


def test_the_first_check_that_fails_wins() -> None:
    order: list[tuple[dict[str, Any], str]] = [
        ({"name": "a/b"}, "Argument `name`"),
        ({"dtype": "x"}, "DTypePolicy"),
        ({"activity_regularizer": "x"}, "regularizer identifier"),
        ({"groups": 1}, "Unrecognized keyword"),
        ({"trainable": 0}, "Expected `trainable`"),
        ({"kernel_size": 0}, "`kernel_size` argument"),
        ({"strides": 0}, "`strides` argument"),
        ({"dilation_rate": 0}, "`dilation_rate` argument"),
        ({"padding": "x"}, "`padding` argument"),
        ({"output_padding": -1}, "`output_padding` argument"),
        ({"data_format": "x"}, "`data_format` argument"),
        ({"activation": "x"}, "activation function identifier"),
        ({"kernel_initializer": "x"}, "initializer identifier"),
        ({"kernel_regularizer": "x"}, "regularizer identifier"),
        ({"kernel_constraint": "x"}, "constraint identifier"),
        ({"filters": 0}, "strictly positive value"),
    ]
    for first in range(len(order)):
        kwargs: dict[str, Any] = {"filters": 2, "kernel_size": 3}
        for more, _ in order[first:]:
            kwargs.update(more)
        with pytest.raises(ConfigError) as raised:
            LayerConfig(**kwargs)
        assert order[first][1] in str(raised.value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "float32"),
        ("mixed_bfloat16", "mixed_bfloat16"),
        (np.float16, "float16"),
        (np.dtype("float64"), "float64"),
        (ml_dtypes.bfloat16, "bfloat16"),
        (float, "float32"),
        ({"class_name": "Policy", "config": {"name": "mixed_float16"}}, "mixed_float16"),
        (
            {
                "module": "keras.dtype_policies",
                "class_name": "FloatDTypePolicy",
                "config": {"name": "bfloat16"},
            },
            "bfloat16",
        ),
    ],
)
def test_forms_of_a_policy(value: Any, name: str) -> None:
    assert parse(value) == name


@pytest.mark.parametrize(
    "value",
    [
        {"class_name": "QuantizedDTypePolicy", "config": {"name": "float32"}},
        {"module": "os", "class_name": "DTypePolicy", "config": {"name": "float32"}},
        {"class_name": "DTypePolicy", "config": {"name": 3}},
        {"class_name": "DTypePolicy", "config": None},
        {"class_name": "DTypePolicy", "config": {"name": "float32"}, "registered_name": "a>b"},
        {},
    ],
)
def test_other_policies_are_refused(value: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        parse(value)


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("l1", {"l1": 0.009999999776482582}),
        ("L2", {"l2": 0.01}),
        ("l1l2", {"l1": 0.0, "l2": 0.0}),
        ("orthogonal_regularizer", {"factor": 0.009999999776482582, "mode": "rows"}),
    ],
)
def test_regularizers_by_name(name: str, stored: dict[str, Any]) -> None:
    config = LayerConfig(2, 3, kernel_regularizer=name).get_config()
    assert config["kernel_regularizer"]["config"] == stored
    assert config["kernel_regularizer"]["module"] == "keras.regularizers"
    assert LayerConfig.from_keras(config).get_config() == config


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        ("max_norm", {"max_value": 2, "axis": 0}),
        ("MinMaxNorm", {"min_value": 0.0, "max_value": 1.0, "rate": 1.0, "axis": 0}),
        ("unit_norm", {"axis": 0}),
        ("non_neg", {}),
    ],
)
def test_constraints_by_name(name: str, stored: dict[str, Any]) -> None:
    config = LayerConfig(2, 3, bias_constraint=name).get_config()
    assert config["bias_constraint"]["config"] == stored
    assert LayerConfig.from_keras(config).get_config() == config


def test_custom_training_arguments_survive_unchanged() -> None:
    custom = {
        "module": "pkg",
        "class_name": "Mine",
        "config": {"a": [1, 2]},
        "registered_name": "pkg>Mine",
    }
    config = LayerConfig(2, 3, kernel_regularizer=custom, kernel_constraint=custom)
    again = LayerConfig.from_keras(json.loads(json.dumps(config.get_config())))
    assert again.get_config()["kernel_regularizer"] == custom
    assert again.get_config()["kernel_constraint"] == custom


def test_a_config_is_a_value() -> None:
    config = LayerConfig(2, 3, activation="relu", kernel_regularizer="l2")
    assert pickle.loads(pickle.dumps(config)) == config
    assert copy.deepcopy(config) == config
    assert config != LayerConfig(2, 3)
    config.get_config()["kernel_regularizer"]["config"]["l2"] = 5
    assert config.get_config()["kernel_regularizer"]["config"]["l2"] == 0.01
    with pytest.raises(AttributeError):
        config.filters = 3  # type: ignore[misc]


def test_floats_pass_the_constructor_and_fail_when_built() -> None:
    for kwargs in ({"strides": (2.0, 1, 1)}, {"output_padding": (0.0, 0, 0), "strides": 2}):
        config = LayerConfig(2, 3, **kwargs)
        with pytest.raises(ConfigError, match="must be a tuple of 3 integers"):
            config.kernel_shape(3)


def test_an_initializer_of_none_draws_glorot_uniform_for_the_bias_too() -> None:
    config = LayerConfig(8, 3, bias_initializer=None, kernel_initializer=None)
    assert config.get_config()["bias_initializer"] is None
    kernel, bias = config.initial_weights(3)
    assert np.abs(bias).min() > 0
    assert np.abs(kernel).max() <= np.sqrt(6 / (27 * (8 + 3)))
