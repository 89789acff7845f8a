"""Dtype policies: which dtype a layer's variables have, and which one it computes in.

The names and their meaning are those of ``keras.dtype_policies.DTypePolicy`` (Keras 3.15). There
is no global policy here: ``None`` always means ``float32``, Keras' default.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tvmconv.errors import ConfigError

__all__ = ["POLICIES", "compute_dtype", "numpy_dtype", "parse", "serialize", "variable_dtype"]

#: Policy name -> (variable dtype, compute dtype).
POLICIES: dict[str, tuple[str, str]] = {
    "float16": ("float16", "float16"),
    "float32": ("float32", "float32"),
    "float64": ("float64", "float64"),
    "bfloat16": ("bfloat16", "bfloat16"),
    "mixed_float16": ("float32", "float16"),
    "mixed_bfloat16": ("float32", "bfloat16"),
}

#: The class names under which Keras 2 and 3 write a plain policy, each with its module prefixes.
_CLASSES = {
    "DTypePolicy": ("keras", "tf_keras"),
    "FloatDTypePolicy": ("keras", "tf_keras"),
    "Policy": ("keras", "tf_keras", "tensorflow.keras", "tensorflow.python.keras"),
}


def parse(value: Any) -> str:
    """The name of a policy given in any form that Keras reads.

    Accepts ``None``, a name, a NumPy dtype or scalar type, a policy object and the serialised
    forms of Keras 2, 3.0 and later.

    Raises
    ------
    ConfigError
        The policy is unknown, is no float policy, or is quantized.
    """
    if value is None:
        return "float32"
    if isinstance(value, str):
        return _known(value)
    if isinstance(value, dict):
        return _known(_name_of_dict(value))
    if hasattr(value, "variable_dtype") and hasattr(value, "compute_dtype"):
        if type(value).__name__ not in _CLASSES:
            raise ConfigError(_cannot_interpret(value))
        return _known(str(value.name))
    if value is float:  # Keras maps the Python type to its default float, NumPy to float64.
        return "float32"
    try:
        name = np.dtype(value).name
    except (TypeError, ValueError) as exc:
        raise ConfigError(_cannot_interpret(value)) from exc
    return _known(name)


def serialize(name: str) -> dict[str, Any]:
    """The form in which Keras 3 stores the policy ``name`` in a config."""
    return {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": name},
        "registered_name": None,
    }


def variable_dtype(name: str) -> str:
    """The dtype of kernel and bias under the policy ``name``."""
    return POLICIES[name][0]


def compute_dtype(name: str) -> str:
    """The dtype of inputs and outputs under the policy ``name``."""
    return POLICIES[name][1]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The NumPy dtype called ``name``; bfloat16 comes from ml_dtypes, imported on demand."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def _known(name: str) -> str:
    if name not in POLICIES:
        raise ConfigError(
            f"Cannot convert '{name}' to a mixed precision DTypePolicy. Valid policies include "
            "'mixed_float16', 'mixed_bfloat16', and the name of any float dtype such as 'float32'."
        )
    return name


def _name_of_dict(value: dict[str, Any]) -> str:
    class_name = value.get("class_name")
    module = value.get("module")
    config = value.get("config")
    prefixes = _CLASSES.get(class_name) if isinstance(class_name, str) else None
    if prefixes is None or not isinstance(config, dict):
        raise ConfigError(_cannot_interpret(value))
    if module is not None and not (
        isinstance(module, str)
        and any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)
    ):
        raise ConfigError(_cannot_interpret(value))
    if value.get("registered_name") not in (None, class_name):
        raise ConfigError(_cannot_interpret(value))
    name = config.get("name")
    if name is None and "name" in config:
        return "float32"
    if not isinstance(name, str):
        raise ConfigError(_cannot_interpret(value))
    return name


def _cannot_interpret(value: Any) -> str:
    return (
        "Cannot interpret `dtype` argument. Expected a string or an instance of DTypePolicy. "
        f"Received: dtype={value}"
    )
