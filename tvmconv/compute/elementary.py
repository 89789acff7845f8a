"""Elementary functions as expressions that vectorise: exp, expm1, log1p, log, tanh, erf.

In float32 they are polynomials after a range reduction (no call, so a whole register of lanes goes through them at once);
in float64 they call the C library. Every one carries NaN through and gives the limits at infinities. Largest
errors in float32: exp 1e-7 relative; log, log1p, expm1, tanh 2e-7 absolute or relative; erf 2e-7 absolute.

Sources of the polynomials: Cephes (S. Moshier) expf and logf; erf by Abramowitz and Stegun 7.1.26.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

__all__ = ["abs_", "const", "erf", "exp", "expm1", "log", "log1p", "maximum", "minimum", "sqrt", "tanh"]

_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


def dtype_of(x: Any) -> str:
    """The dtype of an expression, as text."""
    return str(x.ty)


def const(value: float, like: Any) -> Any:
    """A constant of the dtype of ``like``."""
    return tirx.const(value, dtype_of(like))


def maximum(x: Any, y: Any) -> Any:
    """The larger one; NaN in x stays."""
    return tirx.Select(x < y, y, x)


def minimum(x: Any, y: Any) -> Any:
    """The smaller one; NaN in x stays."""
    return tirx.Select(x > y, y, x)


def abs_(x: Any) -> Any:
    """The absolute value (of -0.0 too)."""
    return tirx.abs(x)


def sqrt(x: Any) -> Any:
    """The square root, one instruction."""
    return tirx.sqrt(x)


def _libm(name: str, x: Any) -> Any:
    return tirx.call_pure_extern("float64", name, x)


def _is_double(x: Any) -> bool:
    return dtype_of(x) == "float64"


def _horner(x: Any, coefficients: tuple[float, ...]) -> Any:
    total = const(coefficients[0], x)
    for coefficient in coefficients[1:]:
        total = total * x + const(coefficient, x)
    return total


def _float_from_bits(bits: Any) -> Any:
    return tirx.reinterpret("float32", bits)


def exp(x: Any) -> Any:
    """e to the x: 0 below -104, infinity above 88.73, gradual underflow between."""
    if _is_double(x):
        return _libm("exp", x)
    clipped = minimum(maximum(x, const(-105.0, x)), const(89.0, x))
    n = tirx.floor(clipped * const(1.44269504088896341, x) + const(0.5, x))
    r = clipped - n * const(_LN2_HIGH, x) - n * const(_LN2_LOW, x)
    mantissa = _horner(r, _EXP) * r * r + r + const(1.0, x)
    # The clip lets NaN pass, whose conversion to an integer is undefined: give it a harmless exponent.
    whole = tirx.Select(x == x, n, const(0.0, x)).astype("int32")
    # Two factors, since 2**n alone leaves the range of a float at both ends.
    half = tirx.shift_right(whole, tirx.const(1, "int32"))
    power = _power_of_two(half) * mantissa * _power_of_two(whole - half)
    return tirx.Select(x == x, power, x)


def _power_of_two(n: Any) -> Any:
    return _float_from_bits(tirx.shift_left(n + tirx.const(127, "int32"), tirx.const(23, "int32")))


def expm1(x: Any) -> Any:
    """exp(x) - 1, right near 0 too."""
    if _is_double(x):
        return _libm("expm1", x)
    near = x + x * x * _horner(x, _EXP)
    small = tirx.abs(x) < const(0.34, x)
    return tirx.Select(small, near, exp(x) - const(1.0, x))


def log(x: Any) -> Any:
    """The natural logarithm of x > 0; -infinity at 0, NaN below."""
    if _is_double(x):
        return _libm("log", x)
    tiny = x < const(1.17549435e-38, x)
    scaled = tirx.Select(tiny, x * const(2.0**25, x), x)
    bits = tirx.reinterpret("int32", scaled)
    exponent = tirx.shift_right(bits, tirx.const(23, "int32")) - tirx.const(126, "int32")
    fraction = _float_from_bits(
        tirx.bitwise_or(
            tirx.bitwise_and(bits, tirx.const(0x7FFFFF, "int32")), tirx.const(0x3F000000, "int32")
        )
    )
    low = fraction < const(0.70710678118, x)
    e = exponent.astype("float32") - tirx.Select(low, const(1.0, x), const(0.0, x))
    e = e - tirx.Select(tiny, const(25.0, x), const(0.0, x))
    f = tirx.Select(low, fraction + fraction, fraction) - const(1.0, x)
    z = f * f
    y = _horner(f, _LOG) * z * f + e * const(_LN2_LOW, x) - const(0.5, x) * z
    value = f + y + e * const(_LN2_HIGH, x)
    infinity = const(float("inf"), x)
    value = tirx.Select(x == infinity, x, value)
    value = tirx.Select(x == const(0.0, x), const(float("-inf"), x), value)
    return tirx.Select(x >= const(0.0, x), value, const(float("nan"), x))


def log1p(x: Any) -> Any:
    """log(1 + x) for x in [0, 1], the only range the activations need in float32."""
    if _is_double(x):
        return _libm("log1p", x)
    # log(1 + x) corrected for the rounding of 1 + x.
    one = const(1.0, x)
    u = one + x
    return log(u) + (x - (u - one)) / u


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    if _is_double(x):
        return _libm("tanh", x)
    a = minimum(tirx.abs(x), const(20.0, x))
    e = expm1(a + a)
    value = e / (e + const(2.0, x))
    signed = tirx.Select(x < const(0.0, x), -value, value)
    return tirx.Select(x == x, signed, x)


def erf(x: Any) -> Any:
    """The error function."""
    if _is_double(x):
        return _libm("erf", x)
    a = tirx.abs(x)
    one = const(1.0, x)
    t = one / (one + const(0.3275911, x) * a)
    value = one - _horner(t, _ERF) * t * exp(-(a * a))
    # The rational form loses digits around 0, where the series is exact.
    series = x * _horner(x * x, (0.0052239776, -0.026866171, 0.11283792, -0.37612638, 1.1283792))
    signed = tirx.Select(x < const(0.0, x), -value, value)
    inner = tirx.Select(a < const(0.5, x), series, signed)
    return tirx.Select(x == x, inner, x)
