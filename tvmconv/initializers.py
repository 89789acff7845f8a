"""Initializers: Keras' names and formulas in NumPy.

A seed gives the same weights every time, but not the weights that Keras draws: the generator is
NumPy's (PCG64). Only the distribution is Keras'. What is no initializer of Keras is kept as it is,
since weights that are loaded need none.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvmconv import policies
from tvmconv.errors import ConfigError, ConfigTypeError
from tvmconv.regularizers import opaque

__all__ = ["Initializer", "compute_fans", "get"]

_FANS: dict[str, Any] = {"seed": None, "input_axes": None, "output_axes": None}

#: Class name -> its arguments and their defaults, in Keras' order.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Constant": {"value": 0.0},
    "GlorotNormal": _FANS,
    "GlorotUniform": _FANS,
    "HeNormal": _FANS,
    "HeUniform": _FANS,
    "Identity": {"gain": 1.0},
    "LecunNormal": _FANS,
    "LecunUniform": _FANS,
    "Ones": {},
    "Orthogonal": {"seed": None, "gain": 1.0},
    "RandomNormal": {"seed": None, "mean": 0.0, "stddev": 0.05},
    "RandomUniform": {"seed": None, "minval": -0.05, "maxval": 0.05},
    "STFT": {"side": "real", "window": "hann", "scaling": "density", "periodic": False},
    "TruncatedNormal": {"seed": None, "mean": 0.0, "stddev": 0.05},
    "VarianceScaling": {
        "seed": None,
        "scale": 1.0,
        "mode": "fan_in",
        "distribution": "truncated_normal",
        "input_axes": None,
        "output_axes": None,
    },
    "Zeros": {},
}
_ALIASES = {
    "IdentityInitializer": "Identity",
    "OrthogonalInitializer": "Orthogonal",
    "STFTInitializer": "STFT",
    "constant": "Constant",
    "glorot_normal": "GlorotNormal",
    "glorot_uniform": "GlorotUniform",
    "he_normal": "HeNormal",
    "he_uniform": "HeUniform",
    "identity": "Identity",
    "lecun_normal": "LecunNormal",
    "lecun_uniform": "LecunUniform",
    "normal": "RandomNormal",
    "one": "Ones",
    "ones": "Ones",
    "orthogonal": "Orthogonal",
    "random_normal": "RandomNormal",
    "random_uniform": "RandomUniform",
    "stft": "STFT",
    "truncated_normal": "TruncatedNormal",
    "uniform": "RandomUniform",
    "variance_scaling": "VarianceScaling",
    "zero": "Zeros",
    "zeros": "Zeros",
}
#: Named special cases of VarianceScaling: (scale, mode, distribution).
_SCALED: dict[str, tuple[float, str, str]] = {
    "GlorotNormal": (1.0, "fan_avg", "truncated_normal"),
    "GlorotUniform": (1.0, "fan_avg", "uniform"),
    "HeNormal": (2.0, "fan_in", "truncated_normal"),
    "HeUniform": (2.0, "fan_in", "uniform"),
    "LecunNormal": (1.0, "fan_in", "truncated_normal"),
    "LecunUniform": (1.0, "fan_in", "uniform"),
}
#: Standard deviation of a unit normal cut at two standard deviations.
_TRUNCATED_STDDEV = 0.87962566103423978


@dataclass(frozen=True)
class Initializer:
    """An initializer in Keras' stored form; calling it draws an array.

    Parameters
    ----------
    class_name
        Name of the class or function.
    stored
        The form in a config.
    is_keras
        Whether it is one of Keras' own, whose formula is here.
    source
        The live array or callable of the user's that makes the values, else None.
    """

    class_name: str
    stored: dict[str, Any]
    is_keras: bool = False
    source: Any = field(default=None, compare=False)

    @property
    def drawable(self) -> bool:
        """Whether values can be drawn: not from a custom class that is only named in a file."""
        return self.is_keras or self.source is not None

    def serialize(self) -> dict[str, Any]:
        """The stored form, a copy."""
        return copy.deepcopy(self.stored)

    def __call__(self, shape: Sequence[int], dtype: str = "float32") -> np.ndarray:
        """An array of ``shape`` in ``dtype`` (a name; bfloat16 included).

        Raises
        ------
        ConfigError
            The initializer cannot make this shape, or is a class of the user's.
        """
        shape = tuple(shape)
        if self.is_keras:
            values = _draw(self.class_name, self.stored["config"], shape)
        elif isinstance(self.source, np.ndarray):
            if self.source.shape != shape:
                raise ConfigError(
                    f"Expected `shape` to be {self.source.shape} for direct tensor as "
                    f"initializer. Received shape={shape}"
                )
            values = self.source
        elif callable(self.source):
            values = np.asarray(self.source(shape, dtype=dtype))
            if values.shape != shape:
                raise ConfigError(
                    f"The initializer {self.class_name} returned an array of shape "
                    f"{values.shape}. Expected shape={shape}"
                )
        else:
            raise ConfigError(
                f"The initializer {self.class_name} is not one of Keras' and is not run. "
                "Set the weights with set_weights or load_weights."
            )
        with np.errstate(over="ignore"):
            return np.array(values).astype(policies.numpy_dtype(dtype))


def get(value: Any, *, strict_file: bool = False) -> Initializer | None:
    """The initializer given as None, a name, a dict, an array, an object, a class or a callable.

    Raises
    ------
    ConfigError
        The name is unknown or an argument is one that Keras refuses.
    """
    if value is None or isinstance(value, Initializer):
        return value
    if isinstance(value, str):
        return _keras(_known(value, value), {})
    if isinstance(value, dict):
        return _from_dict(value, strict_file)
    if isinstance(value, np.ndarray | np.generic):
        stored = {"module": "builtins", "class_name": "function", "config": "initialize_fn"}
        stored["registered_name"] = "function"
        return Initializer("initialize_fn", stored, source=np.array(value))
    cls = value if isinstance(value, type) else type(value)
    if cls.__name__ in _DEFAULTS and str(cls.__module__).startswith("keras."):
        return _keras(cls.__name__, {} if value is cls else value.get_config())
    if not callable(value):
        raise ConfigError(f"Could not interpret initializer identifier: {value}")
    if isinstance(value, type):
        value = value()
    stored = opaque(value)
    name = stored["config"] if stored["class_name"] == "function" else stored["class_name"]
    return Initializer(str(name), stored, source=value)


def compute_fans(
    shape: Sequence[int],
    input_axes: Sequence[int] | None = None,
    output_axes: Sequence[int] | None = None,
) -> tuple[int, int]:
    """Fan-in and fan-out of a weight, as ``keras.initializers`` counts them.

    The last axis counts as output and the one before as input, times the size of all others. For
    the kernel of this layer, ``(kd, kh, kw, filters, in_channels)``, that swaps the two: Keras
    takes ``filters`` as the input axis, and so do we.
    """
    if input_axes is not None and output_axes is not None:
        return math.prod(shape[a] for a in input_axes), math.prod(shape[a] for a in output_axes)
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    field = math.prod(shape[:-2])
    return shape[-2] * field, shape[-1] * field


def _known(name: str, identifier: Any) -> str:
    class_name = _ALIASES.get(name, name)
    if class_name not in _DEFAULTS:
        raise ConfigError(f"Could not interpret initializer identifier: {identifier}")
    return class_name


def _from_dict(value: dict[str, Any], strict_file: bool) -> Initializer:
    name, config = value.get("class_name"), value.get("config")
    if not isinstance(name, str) or "config" not in value:
        raise ConfigError(f"Unknown `config` as a `dict`, config={value}")
    module = str(value.get("module") or "keras.initializers")
    class_name = _ALIASES.get(name, name)
    if (
        class_name in _DEFAULTS
        and module.startswith(("keras.", "tf_keras."))
        and value.get("registered_name") in (None, name)
        and isinstance(config, dict)
        and not (strict_file and set(config) - set(_DEFAULTS[class_name]))
    ):
        return _keras(class_name, config)
    if value.get("module") is None and value.get("registered_name") is None and not strict_file:
        raise ConfigError(f"Could not interpret initializer identifier: {value}")
    return Initializer(name, copy.deepcopy(value))


def _keras(class_name: str, config: dict[str, Any]) -> Initializer:
    defaults = _DEFAULTS[class_name]
    unknown = set(config) - set(defaults)
    if unknown:
        raise ConfigTypeError(
            f"{class_name}.__init__() got an unexpected keyword argument '{min(unknown)}'"
        )
    full = {key: copy.deepcopy(config.get(key, default)) for key, default in defaults.items()}
    if class_name == "Constant" and "value" not in config:
        raise ConfigError("The Constant initializer needs a `value`. Received: config={}")
    if class_name == "Identity":  # Keras stores no defaults for it.
        full = copy.deepcopy(config)
    _check(class_name, full)
    stored = {
        "module": "keras.initializers",
        "class_name": class_name,
        "config": full,
        "registered_name": None,
    }
    return Initializer(class_name, stored, is_keras=True)


def _check(class_name: str, config: dict[str, Any]) -> None:
    """Refuse what Keras' constructors refuse; normalise what they normalise."""
    seed = config.get("seed")
    if seed is not None and not isinstance(seed, int | dict):
        if hasattr(seed, "get_config"):
            config["seed"] = {
                "module": "keras.random",
                "class_name": type(seed).__name__,
                "config": seed.get_config(),
                "registered_name": None,
            }
        else:
            raise ConfigError(
                "`seed` argument should be an instance of `keras.random.SeedGenerator()` or an "
                f"integer. Received: seed={seed}"
            )
    if class_name != "VarianceScaling":
        return
    if not isinstance(config["scale"], int | float) or not config["scale"] > 0:
        raise ConfigError(
            f"Argument `scale` must be positive float. Received: scale={config['scale']}"
        )
    modes = ("fan_avg", "fan_in", "fan_out")
    if config["mode"] not in modes:
        raise ConfigError(
            f"Invalid `mode` argument: {config['mode']}. Please use one of {set(modes)}"
        )
    distribution = str(config["distribution"]).lower()
    distribution = "truncated_normal" if distribution == "normal" else distribution
    allowed = ("truncated_normal", "uniform", "untruncated_normal")
    if distribution not in allowed:
        raise ConfigError(
            f"Invalid `distribution` argument: {distribution}.Please use one of {set(allowed)}"
        )
    config["distribution"] = distribution


def _generator(seed: Any) -> np.random.Generator:
    if isinstance(seed, dict):
        inner = seed.get("config")
        seed = inner.get("seed") if isinstance(inner, dict) else None
    return np.random.default_rng(seed % 2**64 if isinstance(seed, int) else None)


def _draw(class_name: str, config: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """Values of a Keras initializer in float64."""
    if class_name in ("Zeros", "Ones"):
        return np.full(shape, float(class_name == "Ones"))
    if class_name == "Constant":
        return _constant(config["value"], shape)
    if class_name == "Identity":
        raise ConfigError(
            "Identity matrix initializer can only be used for 2D matrices. "
            f"Received: shape={shape} of rank {len(shape)}."
        )
    if class_name == "STFT":
        raise ConfigError(
            "The STFT initializer can only be used for weights of rank 3. "
            f"Received: shape={shape} of rank {len(shape)}."
        )
    rng = _generator(config["seed"])
    if class_name == "RandomNormal":
        return rng.normal(config["mean"], config["stddev"], shape)
    if class_name == "TruncatedNormal":
        mean, stddev = float(config["mean"]), float(config["stddev"])
        return mean + stddev * _truncated_normal(rng, shape)
    if class_name == "RandomUniform":
        return rng.uniform(config["minval"], config["maxval"], shape)
    if class_name == "Orthogonal":
        return _orthogonal(rng, float(config["gain"]), shape)
    scale, mode, distribution = _SCALED.get(class_name) or (
        config["scale"],
        config["mode"],
        config["distribution"],
    )
    fan_in, fan_out = compute_fans(shape, config["input_axes"], config["output_axes"])
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
    variance = scale / max(1.0, fan)
    if distribution == "uniform":
        limit = math.sqrt(3.0 * variance)
        return rng.uniform(-limit, limit, shape)
    if distribution == "untruncated_normal":
        return rng.normal(0.0, math.sqrt(variance), shape)
    return math.sqrt(variance) / _TRUNCATED_STDDEV * _truncated_normal(rng, shape)


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normal values, those beyond two standard deviations drawn again."""
    values = rng.standard_normal(math.prod(shape))
    while (outside := np.flatnonzero(np.abs(values) > 2.0)).size:
        values[outside] = rng.standard_normal(outside.size)
    return values.reshape(shape)


def _orthogonal(rng: np.random.Generator, gain: float, shape: tuple[int, ...]) -> np.ndarray:
    """Orthonormal rows or columns (Saxe et al., 2014); all axes but the last count as rows."""
    if len(shape) < 2:
        raise ConfigError(
            "The tensor to initialize must be at least two-dimensional. "
            f"Received: shape={shape} of rank {len(shape)}."
        )
    rows, columns = math.prod(shape[:-1]), shape[-1]
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q = q * np.sign(np.diag(r))  # Makes the distribution uniform over orthogonal matrices.
    return gain * (q.T if rows < columns else q).reshape(shape)


def _constant(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if isinstance(value, dict):  # Keras stores an array as its nested list.
        inner = value.get("config")
        value = inner.get("value") if isinstance(inner, dict) else None
    try:
        return np.array(np.broadcast_to(np.asarray(value, dtype=np.float64), shape))
    except (TypeError, ValueError) as exc:
        raise ConfigError(
            f"The Constant initializer needs a number or an array that fits shape={shape}. "
            f"Received: value={value}"
        ) from exc
