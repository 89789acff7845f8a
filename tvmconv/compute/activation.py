"""The elementwise activations as expressions, in the dtype of the sum (float32 or float64).

Names, arguments and treatment of NaN and infinities are those of ``tvmconv.activation_functions``,
which is their NumPy form. Comparisons are written so that NaN takes the branch Keras' formula
takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx

from tvmconv.activations import Activation
from tvmconv.compute.elementary import (
    abs_,
    const,
    erf,
    exp,
    expm1,
    let,
    log1p,
    maximum,
    minimum,
    sqrt,
    tanh,
)

__all__ = ["elementwise", "sigmoid"]

_SELU_SCALE = 1.0507009873554805
_SELU_ALPHA = 1.6732632423543772


def elementwise(activation: Activation, x: Any) -> Any:
    """``activation`` of the expression ``x``."""
    return let(x, lambda x: _FORMULAS[activation.name](x, **activation.arguments))


def _clip(x: Any, low: float, high: float) -> Any:
    return let(maximum(x, const(low, x)), lambda v: minimum(v, const(high, x)))


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    one = const(1.0, x)
    return one / (one + exp(-x))


def _relu(x: Any, negative_slope: float, max_value: float | None, threshold: float) -> Any:
    zero, cut = const(0.0, x), const(threshold, x)
    # With a threshold NaN becomes 0: the comparison is false.
    y = tirx.Select(x > cut, x, zero) if threshold else maximum(x, zero)
    if max_value is not None:
        y = _clip(y, 0.0, max_value)
    if not negative_slope:
        return y
    return y - const(negative_slope, x) * let(cut - x, lambda v: maximum(v, zero))


def _leaky_relu(x: Any, negative_slope: float) -> Any:
    zero = const(0.0, x)
    if negative_slope:
        return tirx.Select(x > zero, x, const(negative_slope, x) * x)
    # The simplifier takes 0 * x for 0, which it is not for -inf and NaN.
    product = tirx.Select(x > const(-math.inf, x), zero, const(math.nan, x))
    return tirx.Select(x > zero, x, product)


def _elu(x: Any, alpha: float) -> Any:
    product = const(alpha, x) * expm1(x) if alpha else tirx.Select(tirx.isnan(x), x, const(0.0, x))
    return tirx.Select(x > const(0.0, x), x, product)


def _celu(x: Any, alpha: float) -> Any:
    zero, a = const(0.0, x), const(alpha, x)
    return maximum(x, zero) + let(a * expm1(x / a), lambda v: minimum(v, zero))


def _softplus(x: Any) -> Any:
    return maximum(x, const(0.0, x)) + log1p(exp(-abs_(x)))


def _gelu(x: Any, approximate: bool) -> Any:
    half, one = x * const(0.5, x), const(1.0, x)
    if approximate:
        inner = const(math.sqrt(2.0 / math.pi), x) * (x + const(0.044715, x) * x * x * x)
        return half * (one + tanh(inner))
    return half * (one + erf(x * const(math.sqrt(0.5), x)))


def _hard_sigmoid(x: Any) -> Any:
    return _clip(x + const(3.0, x), 0.0, 6.0) * const(1.0 / 6.0, x)


def _soft_shrink(x: Any, threshold: float) -> Any:
    cut = const(threshold, x)
    below = tirx.Select(x < -cut, x + cut, const(0.0, x))
    return tirx.Select(x > cut, x - cut, below)


def _hard_shrink(x: Any, threshold: float) -> Any:
    return tirx.Select(abs_(x) > const(threshold, x), x, const(0.0, x))


def _sparse_plus(x: Any) -> Any:
    one = const(1.0, x)
    middle = (x + one) * (x + one) * const(0.25, x)
    return tirx.Select(x <= -one, const(0.0, x), tirx.Select(x < one, middle, x))


def _softsign(x: Any) -> Any:
    return x / (const(1.0, x) + abs_(x))


def _squareplus(x: Any, b: float) -> Any:
    return (x + sqrt(x * x + const(b, x))) * const(0.5, x)


def _threshold(x: Any, threshold: float, default_value: float) -> Any:
    return tirx.Select(x > const(threshold, x), x, const(default_value, x))


_FORMULAS: dict[str, Callable[..., Any]] = {
    "celu": _celu,
    "elu": _elu,
    "exponential": exp,
    "gelu": _gelu,
    "hard_shrink": _hard_shrink,
    "hard_sigmoid": _hard_sigmoid,
    "hard_silu": lambda x: x * _hard_sigmoid(x),
    "hard_tanh": lambda x: _clip(x, -1.0, 1.0),
    "leaky_relu": _leaky_relu,
    "linear": lambda x: x,
    "log_sigmoid": lambda x: -_softplus(-x),
    "mish": lambda x: x * tanh(_softplus(x)),
    "relu": _relu,
    "relu6": lambda x: _clip(x, 0.0, 6.0),
    "selu": lambda x: const(_SELU_SCALE, x) * _elu(x, _SELU_ALPHA),
    "sigmoid": sigmoid,
    "silu": lambda x: x * sigmoid(x),
    "soft_shrink": _soft_shrink,
    "softplus": _softplus,
    "softsign": _softsign,
    "sparse_plus": _sparse_plus,
    "sparse_sigmoid": lambda x: _clip((x + const(1.0, x)) * const(0.5, x), 0.0, 1.0),
    "squareplus": _squareplus,
    "tanh": tanh,
    "tanh_shrink": lambda x: x - tanh(x),
    "threshold": _threshold,
}
