"""`LayerConfig`: every argument of ``keras.layers.Conv3DTranspose``, checked and normalised.

Arguments, defaults, the order of the checks and the wording of the errors are those of Keras
3.15 (``keras/src/layers/convolutional/base_conv_transpose.py``). Configs of Keras 2, 3.0 and 3.6
are read too. Nothing that a config names is imported or run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmconv import activations, arguments, initializers, policies, regularizers
from tvmconv.activations import Activation
from tvmconv.errors import ConfigError, ConfigTypeError
from tvmconv.initializers import Initializer
from tvmconv.policies import numpy_dtype

__all__ = [
    "ARGUMENTS",
    "DEFAULT_NAME",
    "LayerConfig",
    "build_shape",
    "from_serialized",
    "is_conv3d_transpose",
    "numpy_dtype",
]

DEFAULT_NAME = "conv3d_transpose"

#: The constructor's arguments with their defaults, in Keras' positional order.
ARGUMENTS: dict[str, Any] = {
    "filters": ...,
    "kernel_size": ...,
    "strides": (1, 1, 1),
    "padding": "valid",
    "data_format": None,
    "output_padding": None,
    "dilation_rate": (1, 1, 1),
    "activation": None,
    "use_bias": True,
    "kernel_initializer": "glorot_uniform",
    "bias_initializer": "zeros",
    "kernel_regularizer": None,
    "bias_regularizer": None,
    "activity_regularizer": None,
    "kernel_constraint": None,
    "bias_constraint": None,
}
#: Keyword arguments of every Keras layer; the last three do not matter to this layer.
_KEYWORDS = ("name", "trainable", "dtype", "autocast", "input_shape", "input_dim")

_CLASS_NAMES = ("Conv3DTranspose", "Convolution3DTranspose")
_MODULES = ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras")

Triple = tuple[int, int, int]
Stored = dict[str, Any]


@dataclass(frozen=True, init=False)
class LayerConfig:
    """The arguments of one layer, normalised.

    The constructor takes what Keras' constructor takes, in the same order, and ``name``,
    ``trainable`` and ``dtype``. Tuples have three ints, names are lower case, the dtype is a
    policy name. Regularizers and constraints are the dicts that Keras stores, or None.

    Raises
    ------
    ConfigError
        An argument is wrong; the text is Keras'.
    ConfigTypeError
        The same where Keras raises a TypeError.
    """

    filters: int
    kernel_size: Triple
    strides: Triple
    padding: str
    data_format: str
    output_padding: Triple | None
    dilation_rate: Triple
    activation: Activation
    use_bias: bool
    kernel_initializer: Initializer | None
    bias_initializer: Initializer | None
    kernel_regularizer: Stored | None
    bias_regularizer: Stored | None
    activity_regularizer: Stored | None
    kernel_constraint: Stored | None
    bias_constraint: Stored | None
    name: str
    trainable: bool
    dtype: str

    def __init__(
        self,
        filters: Any,
        kernel_size: Any,
        strides: Any = (1, 1, 1),
        padding: Any = "valid",
        data_format: Any = None,
        output_padding: Any = None,
        dilation_rate: Any = (1, 1, 1),
        activation: Any = None,
        use_bias: Any = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        **keywords: Any,
    ) -> None:
        given = {key: value for key, value in locals().items() if key in ARGUMENTS}
        self._fill(given, keywords, strict_file=False)

    @classmethod
    def from_keras(cls, config: Mapping[str, Any], *, strict_file: bool = False) -> LayerConfig:
        """The layer that a ``get_config()`` dict of any Keras version describes.

        Keras 2's ``groups: 1`` and ``batch_input_shape`` are dropped. With ``strict_file`` the
        dict comes from a file: values that Keras would let pass and fail on later are refused,
        and an activation layer may lack its module.

        Raises
        ------
        ConfigError
            A key is missing or unknown, or a value is wrong.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(f"The config of a layer must be a dict. Received: {config!r}")
        given = {str(key): value for key, value in config.items()}
        if type(given.get("groups")) is int and given["groups"] == 1:
            del given["groups"]
        given.pop("batch_input_shape", None)
        missing = [key for key in ("filters", "kernel_size") if key not in given]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            names = " and ".join(f"'{key}'" for key in missing)
            raise ConfigTypeError(
                f"Conv3DTranspose.__init__() missing {len(missing)} required positional "
                f"argument{plural}: {names}"
            )
        if strict_file:
            arguments.check_file_values(given)
        keywords = {key: value for key, value in given.items() if key not in ARGUMENTS}
        new = cls.__new__(cls)
        new._fill({**ARGUMENTS, **_only(given, ARGUMENTS)}, keywords, strict_file=strict_file)
        return new

    def _fill(self, given: dict[str, Any], keywords: dict[str, Any], *, strict_file: bool) -> None:
        """Check and set every field, in the order in which Keras checks them."""
        done: dict[str, Any] = {}
        name = keywords.get("name")
        done["name"] = DEFAULT_NAME if name is None else arguments.layer_name(name)
        done["dtype"] = policies.parse(keywords.get("dtype"))
        done["activity_regularizer"] = regularizers.regularizer(
            given["activity_regularizer"], strict_file=strict_file
        )
        unknown = {key: value for key, value in keywords.items() if key not in _KEYWORDS}
        if unknown:
            raise ConfigError(
                f"Unrecognized keyword arguments passed to Conv3DTranspose: {unknown}"
            )
        trainable = keywords.get("trainable", True)
        if not isinstance(trainable, bool):
            raise ConfigError(
                f"Expected `trainable` to be a boolean. Received: trainable={trainable} "
                f"(of type {type(trainable)})"
            )
        done["trainable"] = trainable
        for key in ("kernel_size", "strides", "dilation_rate"):
            done[key] = arguments.triple(given[key], key)
        done["padding"] = arguments.padding(given["padding"])
        op = given["output_padding"]
        done["output_padding"] = (
            None if op is None else arguments.triple(op, "output_padding", allow_zero=True)
        )
        done["data_format"] = arguments.data_format(given["data_format"])
        done["activation"] = activations.deserialize(given["activation"], strict_file=strict_file)
        done["use_bias"] = bool(given["use_bias"])
        for key in ("kernel_initializer", "bias_initializer"):
            done[key] = initializers.get(given[key], strict_file=strict_file)
        for key in ("kernel_regularizer", "bias_regularizer"):
            done[key] = regularizers.regularizer(given[key], strict_file=strict_file)
        for key in ("kernel_constraint", "bias_constraint"):
            done[key] = regularizers.constraint(given[key], strict_file=strict_file)
        done["filters"] = arguments.check_filters(given["filters"])
        for key, value in done.items():
            object.__setattr__(self, key, value)
        self._check_together()

    def _check_together(self) -> None:
        """The checks that involve more than one argument."""
        op, strides = self.output_padding, self.strides
        for axis, (extra, stride) in enumerate(zip(op or (), strides, strict=False)):
            if extra >= stride:
                raise ConfigError(
                    "`output_padding` must be strictly less than `strides` for all dimensions. "
                    f"At dimension {axis}, `output_padding` is {extra} but `strides` is {stride}. "
                    f"Received: output_padding={op}, strides={strides}"
                )
        if max(strides) > 1 and max(self.dilation_rate) > 1:
            raise ConfigError(
                "`strides > 1` not supported in conjunction with `dilation_rate > 1`. "
                f"Received: strides={strides} and dilation_rate={self.dilation_rate}"
            )
        axes = self.activation.axes
        if axes is not None and (
            not all(-5 <= axis < 5 for axis in axes) or len({a % 5 for a in axes}) < len(axes)
        ):
            raise ConfigError(
                f"The axes of the activation {self.activation.name} must be different axes of a "
                f"tensor of rank 5. Received: axis={list(axes)}"
            )

    def __hash__(self) -> int:
        return hash(json.dumps(self.get_config(), sort_keys=True, default=str))

    @property
    def variable_dtype(self) -> str:
        """The dtype name of kernel and bias."""
        return policies.variable_dtype(self.dtype)

    @property
    def compute_dtype(self) -> str:
        """The dtype name to which input, kernel and bias are rounded."""
        return policies.compute_dtype(self.dtype)

    @property
    def output_dtype(self) -> str:
        """The dtype name of the output: an activation layer's own, else the compute dtype."""
        policy = self.activation.policy
        return policies.compute_dtype(self.dtype if policy is None else policy)

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in a rank-5 tensor: 4 or 1."""
        return 4 if self.data_format == "channels_last" else 1

    def kernel_shape(self, in_channels: Any) -> tuple[int, int, int, int, int]:
        """``(kd, kh, kw, filters, in_channels)``, checked as Keras checks it when it builds.

        Raises
        ------
        ConfigError
            A dimension is unknown, negative, or no integer, or another argument is no integer.
        """
        values = (*self.kernel_size, self.filters, in_channels)
        kd, kh, kw, filters, channels = arguments.shape(values, f"{self.name}/kernel")
        for key in ("strides", "dilation_rate", "output_padding"):
            value = getattr(self, key)
            if value is not None and not all(isinstance(v, int) for v in value):
                raise ConfigError(
                    f"The `{key}` argument must be a tuple of 3 integers. Received {key}={value}"
                )
        return kd, kh, kw, filters, channels

    def weight_shapes(self, in_channels: Any) -> list[tuple[int, ...]]:
        """The shapes of ``[kernel, bias]``, or of ``[kernel]`` without a bias."""
        kernel = self.kernel_shape(in_channels)
        return [kernel, (kernel[3],)] if self.use_bias else [kernel]

    def initial_weights(self, in_channels: Any) -> list[np.ndarray]:
        """``[kernel, bias]``, or ``[kernel]``, drawn by the initializers in the variable dtype.

        An initializer of None draws ``glorot_uniform``, for the bias too, as Keras does.
        """
        weights = []
        both = (self.kernel_initializer, self.bias_initializer)
        for shape, initializer in zip(self.weight_shapes(in_channels), both, strict=False):
            draw = initializer or initializers.get("glorot_uniform")
            assert draw is not None
            weights.append(draw(shape, self.variable_dtype))
        return weights

    def get_config(self) -> dict[str, Any]:
        """Keras' config of the layer: its 19 keys in Keras' order, ready for JSON."""

        def listed(value: Triple | None) -> list[int] | None:
            return None if value is None else list(value)

        def stored(value: Initializer | None) -> Stored | None:
            return None if value is None else value.serialize()

        config = {
            "name": self.name,
            "trainable": self.trainable,
            "dtype": policies.serialize(self.dtype),
            "filters": self.filters,
            "kernel_size": listed(self.kernel_size),
            "strides": listed(self.strides),
            "padding": self.padding,
            "output_padding": listed(self.output_padding),
            "data_format": self.data_format,
            "dilation_rate": listed(self.dilation_rate),
            "activation": self.activation.serialize(),
            "use_bias": self.use_bias,
            "kernel_initializer": stored(self.kernel_initializer),
            "bias_initializer": stored(self.bias_initializer),
        }
        for key in (
            "kernel_regularizer",
            "bias_regularizer",
            "activity_regularizer",
            "kernel_constraint",
            "bias_constraint",
        ):
            value = getattr(self, key)
            config[key] = None if value is None else json.loads(json.dumps(value, default=str))
        return config


def is_conv3d_transpose(obj: Any) -> bool:
    """Whether a serialised object is Keras' Conv3DTranspose, not a user's class of that name."""
    if not isinstance(obj, Mapping) or obj.get("class_name") not in _CLASS_NAMES:
        return False
    module = obj.get("module")
    if obj.get("registered_name") not in (None, *_CLASS_NAMES):
        return False
    return module is None or (
        isinstance(module, str)
        and any(module == prefix or module.startswith(prefix + ".") for prefix in _MODULES)
    )


def from_serialized(obj: Mapping[str, Any], *, strict_file: bool = True) -> LayerConfig:
    """The layer in a serialised object ``{"module", "class_name", "config", ...}``.

    Raises
    ------
    ConfigError
        The object is no Conv3DTranspose of Keras, or its config is wrong.
    """
    if not is_conv3d_transpose(obj):
        name = obj.get("class_name") if isinstance(obj, Mapping) else obj
        raise ConfigError(f"Expected a serialised keras.layers.Conv3DTranspose, received {name!r}.")
    config = obj.get("config")
    if not isinstance(config, Mapping):
        raise ConfigError(f"The config of a layer must be a dict. Received: {config!r}")
    return LayerConfig.from_keras(config, strict_file=strict_file)


def build_shape(obj: Mapping[str, Any]) -> tuple[int | None, ...] | None:
    """The input shape stored in a serialised layer: five sizes, None where unknown; or None.

    It stands in ``build_config.input_shape`` (Keras 3) or ``config.batch_input_shape`` (Keras 2).

    Raises
    ------
    ConfigError
        The stored shape is no list of five sizes.
    """
    built, config = obj.get("build_config"), obj.get("config")
    shape = built.get("input_shape") if isinstance(built, Mapping) else None
    if shape is None and isinstance(config, Mapping):
        shape = config.get("batch_input_shape")
    if shape is None:
        return None
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 5
        or not all(v is None or (type(v) is int and 0 <= v < 2**63) for v in shape)
    ):
        raise ConfigError(f"A stored input shape must have 5 sizes. Received: {shape!r}")
    return tuple(shape)


def _only(given: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key in keys}
