"""Configs from files: the stricter rules, what may be missing, which objects are the layer."""

from __future__ import annotations

from typing import Any

import pytest

from tvmconv.config import LayerConfig, build_shape, from_serialized, is_conv3d_transpose
from tvmconv.errors import ConfigError, ConfigTypeError


def test_a_shared_object_id_is_ignored() -> None:
    stored = LayerConfig(2, 3, kernel_regularizer="l2").get_config()
    for key in ("kernel_initializer", "kernel_regularizer", "dtype"):
        stored[key]["shared_object_id"] = 7
    assert LayerConfig.from_keras(stored, strict_file=True) == LayerConfig(
        2, 3, kernel_regularizer="l2"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"filters": True},
        {"filters": 2.0},
        {"filters": None},
        {"filters": [2]},
        {"filters": 2**24 + 1},
        {"filters": 2**24, "kernel_size": [8, 8, 4]},
        {"kernel_size": [3, 3, 3.0]},
        {"kernel_size": "333"},
        {"kernel_size": 10**30},
        {"strides": [True, 1, 1]},
        {"strides": [1, 1, 0]},
        {"dilation_rate": None},
        {"output_padding": [0.0, 0, 0]},
        {"output_padding": -1},
        {"use_bias": "yes"},
        {"use_bias": 1},
        {"trainable": 1},
        {"padding": ["same"]},
        {"padding": None},
        {"data_format": 1},
        {"name": 3},
        {"name": "a/b"},
        {"groups": 2},
        {"groups": True},
        {"weights": None},
        {"activation": "threshold"},
        {"activation": {"class_name": "__lambda__", "config": {"value": "4w=="}}},
        {"dtype": {"class_name": "QuantizedDTypePolicy", "config": {"mode": "int8"}}},
    ],
    ids=str,
)
def test_files_are_judged_more_strictly(change: dict[str, Any]) -> None:
    stored = {**LayerConfig(2, 3).get_config(), **change}
    with pytest.raises(ConfigError) as raised:
        LayerConfig.from_keras(stored, strict_file=True)
    assert "\n" not in str(raised.value)


def test_an_old_file_may_leave_out_what_has_a_default() -> None:
    config = LayerConfig.from_keras(
        {"filters": 2, "kernel_size": 3, "padding": "SAME", "data_format": "CHANNELS_FIRST"},
        strict_file=True,
    )
    assert config == LayerConfig(2, 3, padding="same", data_format="channels_first")


@pytest.mark.parametrize("missing", [["filters"], ["kernel_size"], ["filters", "kernel_size"]])
def test_missing_arguments(missing: list[str]) -> None:
    stored = {key: value for key, value in LayerConfig(2, 3).get_config().items()}
    for key in missing:
        del stored[key]
    with pytest.raises(ConfigTypeError, match=f"missing {len(missing)} required positional"):
        LayerConfig.from_keras(stored)


def test_a_config_that_is_no_dict_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a dict"):
        LayerConfig.from_keras([1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "class_name", "registered_name", "ours"),
    [
        ("keras.layers", "Conv3DTranspose", None, True),
        ("keras.layers", "Convolution3DTranspose", "Conv3DTranspose", True),
        ("keras.src.layers.convolutional.conv3d_transpose", "Conv3DTranspose", None, True),
        ("tf_keras.src.layers", "Conv3DTranspose", None, True),
        (None, "Conv3DTranspose", None, True),
        ("keras.layers", "Conv2DTranspose", None, False),
        ("pkg", "Conv3DTranspose", "pkg>Conv3DTranspose", False),
        ("kerasx.layers", "Conv3DTranspose", None, False),
        (None, "Conv3DTranspose", "pkg>Conv3DTranspose", False),
        (3, "Conv3DTranspose", None, False),
    ],
)
def test_which_serialised_objects_are_the_layer(
    module: Any, class_name: str, registered_name: str | None, ours: bool
) -> None:
    obj = {
        "module": module,
        "class_name": class_name,
        "config": LayerConfig(2, 3).get_config(),
        "registered_name": registered_name,
    }
    assert is_conv3d_transpose(obj) is ours
    if ours:
        assert from_serialized(obj) == LayerConfig(2, 3)
    else:
        with pytest.raises(ConfigError, match="Expected a serialised"):
            from_serialized(obj)


def test_build_shapes() -> None:
    assert build_shape({"config": {}}) is None
    assert build_shape({"config": {"batch_input_shape": [None, 1, 2, 3, 4]}}) == (None, 1, 2, 3, 4)
    for wrong in ([1, 2, 3], [1, 2, 3, 4, 5.0], [1, 2, 3, 4, True], [1, 2, 3, 4, -1], "12345"):
        with pytest.raises(ConfigError, match="must have 5 sizes"):
            build_shape({"build_config": {"input_shape": wrong}})
