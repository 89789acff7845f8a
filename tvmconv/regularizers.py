"""Regularizers and constraints: training-only arguments, kept so that a config survives unchanged.

They never matter at inference. Keras' own get their names and defaults filled in as Keras does;
anything else stays the JSON that it was.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from tvmconv.errors import ConfigError, ConfigTypeError

__all__ = ["constraint", "opaque", "regularizer"]

_REGULARIZERS: dict[str, dict[str, Any]] = {
    "L1": {"l1": 0.01},
    "L2": {"l2": 0.01},
    "L1L2": {"l1": 0.0, "l2": 0.0},
    "OrthogonalRegularizer": {"factor": 0.01, "mode": "rows"},
}
_CONSTRAINTS: dict[str, dict[str, Any]] = {
    "MaxNorm": {"max_value": 2, "axis": 0},
    "MinMaxNorm": {"min_value": 0.0, "max_value": 1.0, "rate": 1.0, "axis": 0},
    "NonNeg": {},
    "UnitNorm": {"axis": 0},
}
_SNAKE = {
    "l1": "L1",
    "l2": "L2",
    "l1l2": "L1L2",
    "orthogonal_regularizer": "OrthogonalRegularizer",
    "max_norm": "MaxNorm",
    "min_max_norm": "MinMaxNorm",
    "non_neg": "NonNeg",
    "unit_norm": "UnitNorm",
}
#: Keras holds these as float32 tensors and stores what comes out of one: 0.009999999776482582.
_FLOAT32 = {("L1", "l1"), ("OrthogonalRegularizer", "factor")}


def regularizer(value: Any, *, strict_file: bool = False) -> dict[str, Any] | None:
    """The stored form of a regularizer given as None, a name, a dict, an object or a callable.

    Raises
    ------
    ConfigError
        The name is unknown or a factor is no number that Keras accepts.
    """
    return _get("regularizer", _REGULARIZERS, value, strict_file)


def constraint(value: Any, *, strict_file: bool = False) -> dict[str, Any] | None:
    """The stored form of a constraint, like `regularizer`."""
    return _get("constraint", _CONSTRAINTS, value, strict_file)


def opaque(value: Any) -> dict[str, Any]:
    """The stored form of a live object of the user's: its names, and its config if it has one."""
    named = isinstance(value, type) or hasattr(value, "__name__")
    if not named and hasattr(value, "get_config"):
        return {
            "module": type(value).__module__,
            "class_name": type(value).__name__,
            "config": value.get_config(),
            "registered_name": type(value).__name__,
        }
    name = value.__name__ if named else type(value).__name__
    return {
        "module": getattr(value, "__module__", None) or "builtins",
        "class_name": "function",
        "config": name,
        "registered_name": name,
    }


def _get(
    kind: str, known: dict[str, dict[str, Any]], value: Any, strict_file: bool
) -> dict[str, Any] | None:
    if value is None:
        return None
    if isinstance(value, str):
        class_name = _SNAKE.get(value, value)
        if class_name not in known:
            raise ConfigError(f"Could not interpret {kind} identifier: {value}")
        return _fill(kind, known, class_name, {})
    if isinstance(value, dict):
        stored_name, config = value.get("class_name"), value.get("config")
        if not isinstance(stored_name, str) or "config" not in value:
            raise ConfigError(f"Unknown `config` as a `dict`, config={value}")
        ours = value.get("registered_name") in (None, stored_name) and str(
            value.get("module") or f"keras.{kind}s"
        ).startswith(("keras.", "tf_keras."))
        class_name = _SNAKE.get(stored_name, stored_name)
        if ours and class_name in known and isinstance(config, dict):
            if strict_file and set(config) - set(known[class_name]):
                return copy.deepcopy(value)
            return _fill(kind, known, class_name, config)
        return copy.deepcopy(value)
    cls = value if isinstance(value, type) else type(value)
    if cls.__name__ in known and str(cls.__module__).startswith("keras."):
        config = {} if value is cls else value.get_config()
        return _fill(kind, known, cls.__name__, config)
    if callable(value):
        return opaque(value)
    raise ConfigError(f"Could not interpret {kind} identifier: {value}")


def _fill(
    kind: str, known: dict[str, dict[str, Any]], class_name: str, config: dict[str, Any]
) -> dict[str, Any]:
    unknown = set(config) - set(known[class_name])
    if unknown:
        raise ConfigTypeError(
            f"{class_name}.__init__() got an unexpected keyword argument '{min(unknown)}'"
        )
    full = {key: config.get(key, default) for key, default in known[class_name].items()}
    for key, value in full.items():
        if kind == "regularizer" and key != "mode":
            full[key] = _factor(class_name, key, value)
    if full.get("mode", "rows") not in ("rows", "columns"):
        raise ConfigError(
            'Invalid value for argument `mode`. Expected one of {"rows", "columns"}. '
            f"Received: mode={full['mode']}"
        )
    return {
        "module": f"keras.{kind}s",
        "class_name": class_name,
        "config": full,
        "registered_name": None,
    }


def _factor(class_name: str, key: str, value: Any) -> float:
    if value is None and key in ("l1", "l2"):
        value = _REGULARIZERS[class_name][key]
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(
            f"Invalid value for argument {key}: expected a non-negative float."
            f"Received: {key}={value}"
        )
    return float(np.float32(value)) if (class_name, key) in _FLOAT32 else float(value)
