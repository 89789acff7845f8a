"""The formulas of ``keras.activations`` (Keras 3.15) in NumPy, float64 in and out.

Every function takes the arguments of its Keras namesake. The order of operations follows Keras
where it decides what NaN and infinities become, for example ``silu(-inf) = -inf * 0 = NaN``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tvmconv.errors import ConfigError

__all__ = ["FUNCTIONS"]

Array = npt.NDArray[np.float64]

_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772


def _relu(x: Array, negative_slope: float, max_value: float | None, threshold: float) -> Array:
    below = np.maximum(threshold - x, 0.0) if negative_slope else 0.0
    # With a threshold NaN becomes 0: the comparison is false.
    y = np.where(x > threshold, x, 0.0) if threshold else np.maximum(x, 0.0)
    if max_value is not None:
        y = np.clip(y, 0.0, max_value)
    return y - negative_slope * below if negative_slope else y


def _leaky_relu(x: Array, negative_slope: float) -> Array:
    return np.where(x > 0, x, negative_slope * x)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(x))


def _celu(x: Array, alpha: float) -> Array:
    return np.maximum(x, 0.0) + np.minimum(alpha * np.expm1(x / alpha), 0.0)


def _selu(x: Array) -> Array:
    return _SELU_SCALE * _elu(x, _SELU_ALPHA)


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _gelu(x: Array, approximate: bool) -> Array:
    if approximate:
        return x / 2 * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    scaled = x / math.sqrt(2.0)
    erf = np.fromiter(map(math.erf, scaled.ravel().tolist()), np.float64, scaled.size)
    return x / 2 * (1.0 + erf.reshape(x.shape))


def _glu(x: Array, axis: int) -> Array:
    if x.shape[axis] % 2:
        raise ConfigError(
            f"axis size must be divisible by 2. Received: x.shape={x.shape} with axis={axis}"
        )
    value, gate = np.split(x, 2, axis=axis)
    return value * _sigmoid(gate)


def _softmax(x: Array, axis: int | tuple[int, ...]) -> Array:
    if x.size == 0:
        return x
    power = np.exp(x - x.max(axis=axis, keepdims=True))
    return power / power.sum(axis=axis, keepdims=True)


def _log_softmax(x: Array, axis: int) -> Array:
    if x.size == 0:
        return x
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def _sparsemax(x: Array, axis: int) -> Array:
    # Keras sums the cumulative sums over the support; Martins and Astudillo (2016) take the last.
    ordered = -np.sort(-x, axis=axis)
    sums = np.cumsum(ordered, axis=axis)
    shape = [1] * x.ndim
    shape[axis] = -1
    rank = np.arange(1, x.shape[axis] + 1, dtype=np.float64).reshape(shape)
    support = ordered - (sums - 1.0) / rank > 0
    total = np.where(support, sums, 0.0).sum(axis=axis, keepdims=True)
    return np.maximum(x - (total - 1.0) / support.sum(axis=axis, keepdims=True), 0.0)


def _hard_sigmoid(x: Array) -> Array:
    return np.clip(x + 3.0, 0.0, 6.0) / 6.0


def _soft_shrink(x: Array, threshold: float) -> Array:
    return np.where(x > threshold, x - threshold, np.where(x < -threshold, x + threshold, 0.0))


def _sparse_plus(x: Array) -> Array:
    return np.where(x <= -1, 0.0, np.where(x < 1, (x + 1.0) ** 2 / 4, x))


def _threshold(x: Array, threshold: float, default_value: float) -> Array:
    return np.where(x > threshold, x, default_value)


#: Keras' name -> (formula, {argument: default}). ``threshold`` has no defaults in Keras.
FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "celu": (_celu, {"alpha": 1.0}),
    "elu": (_elu, {"alpha": 1.0}),
    "exponential": (np.exp, {}),
    "gelu": (_gelu, {"approximate": False}),
    "glu": (_glu, {"axis": -1}),
    "hard_shrink": (
        lambda x, threshold: np.where(np.abs(x) > threshold, x, 0.0),
        {"threshold": 0.5},
    ),
    "hard_sigmoid": (_hard_sigmoid, {}),
    "hard_silu": (lambda x: x * _hard_sigmoid(x), {}),
    "hard_tanh": (lambda x: np.clip(x, -1.0, 1.0), {}),
    "leaky_relu": (_leaky_relu, {"negative_slope": 0.2}),
    "linear": (lambda x: x, {}),
    "log_sigmoid": (lambda x: -_softplus(-x), {}),
    "log_softmax": (_log_softmax, {"axis": -1}),
    "mish": (lambda x: x * np.tanh(_softplus(x)), {}),
    "relu": (_relu, {"negative_slope": 0.0, "max_value": None, "threshold": 0.0}),
    "relu6": (lambda x: np.clip(x, 0.0, 6.0), {}),
    "selu": (_selu, {}),
    "sigmoid": (_sigmoid, {}),
    "silu": (lambda x: x * _sigmoid(x), {}),
    "soft_shrink": (_soft_shrink, {"threshold": 0.5}),
    "softmax": (_softmax, {"axis": -1}),
    "softplus": (_softplus, {}),
    "softsign": (lambda x: x / (1.0 + np.abs(x)), {}),
    "sparse_plus": (_sparse_plus, {}),
    "sparse_sigmoid": (lambda x: np.clip((x + 1.0) / 2, 0.0, 1.0), {}),
    "sparsemax": (_sparsemax, {"axis": -1}),
    "squareplus": (lambda x, b: (x + np.sqrt(x * x + b)) / 2, {"b": 4}),
    "tanh": (np.tanh, {}),
    "tanh_shrink": (lambda x: x - np.tanh(x), {}),
    "threshold": (_threshold, {"threshold": 0.0, "default_value": 0.0}),
}
