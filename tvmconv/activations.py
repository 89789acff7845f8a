"""Activations: how Keras names, stores and evaluates them.

An `Activation` is plain data: the name of a Keras activation function with all its arguments, and,
where the layer was given an activation *layer*, that layer's class, name and dtype policy. The
formulas are those of ``keras.activations`` (Keras 3.15) in float64 NumPy; code generation reads
the same name and arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvmconv import policies
from tvmconv.activation_functions import FUNCTIONS
from tvmconv.errors import ConfigError, ConfigTypeError

__all__ = ["FUNCTIONS", "LINEAR", "Activation", "deserialize"]

Scalar = float | int | bool | None
Argument = Scalar | tuple[int, ...]

ALIASES = {"swish": "silu", "hard_swish": "hard_silu"}

#: Activation layer -> (function, {argument of the layer: its default}, automatic name).
_LAYERS: dict[str, tuple[str, dict[str, Argument], str]] = {
    "ReLU": ("relu", {"max_value": None, "negative_slope": 0.0, "threshold": 0.0}, "re_lu"),
    "LeakyReLU": ("leaky_relu", {"negative_slope": 0.3}, "leaky_re_lu"),
    "ELU": ("elu", {"alpha": 1.0}, "elu"),
    "Softmax": ("softmax", {"axis": -1}, "softmax"),
    "Activation": ("", {}, "activation"),
}
_LAYER_MODULES = ("keras.layers", "keras.src.layers", "tf_keras.layers", "tf_keras.src.layers")
_FUNCTION_MODULES = ("builtins", "keras.activations", "keras.src.activations")


@dataclass(frozen=True)
class Activation:
    """An activation function with its arguments, ready to be evaluated, stored or compiled.

    Parameters
    ----------
    name
        Keras' function name, without aliases, for example ``"silu"``.
    args
        Pairs of argument name and value. Missing ones get their defaults, so two equal
        activations compare equal.
    policy
        The dtype policy of the activation *layer*; ``None`` for a plain function, which computes
        in the dtype of its input.
    layer_class, layer_name, layer_trainable
        The activation layer that holds the function; ``None``, ``None``, ``True`` for a function.
    """

    name: str
    args: tuple[tuple[str, Argument], ...] = ()
    policy: str | None = None
    layer_class: str | None = None
    layer_name: str | None = None
    layer_trainable: bool = True

    def __post_init__(self) -> None:
        if self.name not in FUNCTIONS:
            raise ConfigError(_unknown(self.name))
        defaults = FUNCTIONS[self.name][1]
        given = dict(self.args)
        unknown = set(given) - set(defaults)
        if unknown:
            raise ConfigTypeError(
                f"{self.name}() got an unexpected keyword argument '{min(unknown)}'"
            )
        full = tuple((key, given.get(key, default)) for key, default in defaults.items())
        object.__setattr__(self, "args", full)

    @property
    def arguments(self) -> dict[str, Any]:
        """All arguments of the function by name."""
        return dict(self.args)

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The axes over which values mix, as given (-1 is the last); None when elementwise."""
        axis = self.arguments.get("axis")
        if axis is None:
            return None
        return tuple(axis) if isinstance(axis, tuple) else (int(axis),)

    def evaluate(self, x: np.ndarray) -> np.ndarray:
        """The activation of ``x`` in float64; same shape, except ``glu``, which halves its axis.

        NaN and infinities go where Keras' TensorFlow backend puts them.

        Raises
        ------
        ConfigError
            ``glu`` over an axis of odd size, or an axis that ``x`` does not have.
        """
        x = np.asarray(x).astype(np.float64)
        for axis in self.axes or ():
            if not -x.ndim <= axis < x.ndim:
                raise ConfigError(f"{self.name}: axis {axis} is out of range for shape {x.shape}")
        with np.errstate(all="ignore"):
            function: Callable[..., np.ndarray] = FUNCTIONS[self.name][0]
            return np.asarray(function(x, **self.arguments), dtype=np.float64)

    def serialize(self) -> str | dict[str, Any]:
        """The form in which Keras stores this activation in a layer's config."""
        if self.layer_class is None:
            if self.args != Activation(self.name).args:
                raise ConfigError(
                    f"The activation {self.name} with arguments {self.arguments} has no stored "
                    "form in Keras; use an activation layer such as LeakyReLU."
                )
            return self.name
        keys = _LAYERS[self.layer_class][1]
        values = self.arguments if keys else {}
        own: dict[str, Any] = {key: _json_value(values[key]) for key in keys}
        if self.layer_class == "Activation":
            own = {"activation": self.name}
        return {
            "module": "keras.layers",
            "class_name": self.layer_class,
            "config": {
                "name": self.layer_name,
                "trainable": self.layer_trainable,
                "dtype": policies.serialize(self.policy or "float32"),
                **own,
            },
            "registered_name": None,
        }


LINEAR = Activation("linear")


def deserialize(obj: Any, *, strict_file: bool = False) -> Activation:
    """The activation that ``obj`` stands for.

    ``obj`` is None, a name, a serialised function or activation layer, a live Keras function or
    activation layer, or an `Activation`. With ``strict_file`` an activation layer may lack its
    ``module``, as Keras 2 writes it. Nothing is imported, decoded or called.

    Raises
    ------
    ConfigError
        The name is unknown, or the object is code of the user's, which cannot be compiled.
    ConfigTypeError
        Where Keras raises a TypeError: a class that it cannot locate, ``threshold`` by name.
    """
    if obj is None:
        return LINEAR
    if isinstance(obj, Activation):
        return obj
    if isinstance(obj, str):
        return _by_name(obj)
    if isinstance(obj, dict):
        return _from_dict(obj, strict_file)
    return _from_live(obj)


def _by_name(name: str, message: str | None = None) -> Activation:
    name = ALIASES.get(name, name)
    if name not in FUNCTIONS:
        raise ConfigTypeError(message) if message else ConfigError(_unknown(name))
    if name == "threshold":
        raise ConfigTypeError(
            "threshold() missing 2 required positional arguments: 'threshold' and 'default_value'"
        )
    return Activation(name)


def _from_dict(obj: dict[str, Any], strict_file: bool) -> Activation:
    class_name, module, config = obj.get("class_name"), obj.get("module"), obj.get("config")
    if not isinstance(class_name, str) or "config" not in obj:
        raise ConfigError(_unknown(obj))
    if class_name == "__lambda__":
        raise ConfigError(
            "The activation is a Python lambda stored as marshalled code, which is never decoded. "
            "Expected the name of a Keras activation or an activation layer."
        )
    if class_name == "function":
        if not isinstance(config, str) or not _is_module(module, _FUNCTION_MODULES):
            raise ConfigTypeError(_not_located("function", config))
        return _by_name(config, _not_located("function", config))
    if (
        class_name not in _LAYERS
        or not isinstance(config, dict)
        or not (_is_module(module, _LAYER_MODULES) or (module is None and strict_file))
        or obj.get("registered_name") not in (None, class_name)
    ):
        raise ConfigTypeError(_not_located("class", class_name))
    return _from_layer(class_name, config, strict_file)


def _from_layer(class_name: str, config: dict[str, Any], strict_file: bool) -> Activation:
    function, defaults, auto_name = _LAYERS[class_name]
    rest = dict(config)
    name, trainable = rest.pop("name", None), rest.pop("trainable", True)
    policy = policies.parse(rest.pop("dtype", None))
    if name is None:
        name = auto_name
    if not isinstance(name, str) or not isinstance(trainable, bool):
        raise ConfigError(
            f"The activation layer {class_name} needs a string as name and a bool as trainable. "
            f"Received: name={name}, trainable={trainable}"
        )
    args: dict[str, Argument] = {}
    if class_name == "Activation":
        inner = deserialize(rest.pop("activation", None), strict_file=strict_file)
        if inner.layer_class is not None:
            raise ConfigError("An Activation layer must hold the name of an activation function.")
        function = inner.name
    else:
        if class_name == "LeakyReLU" and "alpha" in rest:
            rest["negative_slope"] = rest.pop("alpha")
        for key, default in defaults.items():
            args[key] = _argument(class_name, key, rest.pop(key, default))
    if rest:
        raise ConfigError(f"Unrecognized keyword arguments passed to {class_name}: {rest}")
    return Activation(function, tuple(args.items()), policy, class_name, name, trainable)


def _argument(layer: str, key: str, value: Any) -> Argument:
    """Check one argument of an activation layer, in Keras' words where Keras checks it."""
    if isinstance(value, np.generic):
        value = value.item()
    if key == "axis":
        axes = value if isinstance(value, list | tuple) else [value]
        if not axes or any(isinstance(a, bool) or not isinstance(a, int) for a in axes):
            raise ConfigError(
                f"The axis of a Softmax layer must be an integer or a list of them. "
                f"Received: axis={value}"
            )
        return tuple(axes) if isinstance(value, list | tuple) else int(value)
    if key == "max_value" and value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    if number and (key == "alpha" or value >= 0):
        return value
    if layer == "LeakyReLU":
        raise ConfigError(
            "The negative_slope value of a Leaky ReLU layer cannot be None or negative value. "
            f"Expected a float. Received: {key}={value}"
        )
    if layer == "ReLU":
        what = "a negative value" if key == "max_value" else "None or a negative value"
        raise ConfigError(f"{key} of a ReLU layer cannot be {what}. Received: {key}={value}")
    raise ConfigError(f"{key} of an {layer} layer must be a number. Received: {key}={value}")


def _from_live(obj: Any) -> Activation:
    """An activation from a live Keras function or layer, recognised without importing Keras."""
    module = str(getattr(obj, "__module__", "") or "")
    name = getattr(obj, "__name__", None)
    if isinstance(name, str) and not isinstance(obj, type):
        known = ALIASES.get(name, name)
        if known in FUNCTIONS and _is_module(module, _FUNCTION_MODULES[1:]):
            return _by_name(known)
    elif not isinstance(obj, type) and hasattr(obj, "get_config"):
        class_name = type(obj).__name__
        if class_name in _LAYERS and _is_module(type(obj).__module__, _LAYER_MODULES):
            return _from_layer(class_name, obj.get_config(), False)
    if callable(obj):
        raise ConfigError(
            f"The activation {name or type(obj).__name__!r} is a Python callable and cannot be "
            "compiled. Expected the name of a Keras activation or an activation layer "
            f"({', '.join(sorted(_LAYERS))})."
        )
    raise ConfigError(_unknown(obj))


def _is_module(module: Any, known: tuple[str, ...]) -> bool:
    return isinstance(module, str) and any(
        module == prefix or module.startswith(prefix + ".") for prefix in known
    )


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _json_value(value: Argument) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _unknown(identifier: Any) -> str:
    return f"Could not interpret activation function identifier: {identifier}"


def _not_located(kind: str, name: Any) -> str:
    return (
        f"Could not locate {kind} '{name}'. Expected the name of a Keras activation or one of the "
        f"keras.layers {', '.join(sorted(_LAYERS))}; classes and functions of others are not run."
    )
