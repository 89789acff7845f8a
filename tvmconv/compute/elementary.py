"""Elementary functions as expressions that vectorise: exp, expm1, log1p, log, tanh, erf.

In float32 they are polynomials after a range reduction (no call, so a whole register of lanes goes
through them at once); in float64 they call the C library. Every one carries NaN through and gives
the limits at infinities. Largest errors in float32: exp 1e-7 relative; log, log1p, expm1, tanh 2e-7
absolute or relative; erf 2e-7 absolute.

Sources of the polynomials: Cephes (S. Moshier) expf and logf; erf by Abramowitz and Stegun 7.1.26.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from tvm import tirx
from tvm.ir import Var
from tvm.tirx.script.builder import ir as T

__all__ = [
    "Formula", "abs_", "const", "erf", "exp", "expm1", "let", "log", "log1p", "maximum", "minimum",
    "sqrt", "tanh",
]  # fmt: skip

_EXP = (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1,
)  # fmt: skip
_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
#: 3 * 2**22: the floats around it are the integers; and its bits.
_WHOLE, _WHOLE_BITS = 12582912.0, 0x4B400000


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


class Formula:
    """A function of one element whose intermediate results are named once.

    Temporaries of the enclosing block.

    An expression is a tree: a value used twice without a name is computed, and simplified, twice;
    nested, that is exponential, and Let expressions are put back by the simplifier. So `let` stores
    the value in a local array of the extents of the loops around it, which becomes registers.

    Parameters
    ----------
    function
        Builds the result from the element, calling `let`.
    dtype : str
        Of the element.
    extents : tuple of int
        Of the loops, which the statements are emitted in.
    """

    _current: ClassVar[Callable[[Any], Any] | None] = None

    def __init__(
        self, function: Callable[[Any], Any], dtype: str, extents: tuple[int, ...]
    ) -> None:
        self._function = function
        dtypes: list[str] = []

        def record(value: Any) -> Any:
            dtypes.append(str(value.ty))
            return Var("v", str(value.ty))

        self._run(record, Var("x", dtype))
        shape = tuple(tirx.IntImm("int64", extent) for extent in extents)
        self._cells = [T.sblock_alloc_buffer(shape, kind, scope="local") for kind in dtypes]

    def at(self, element: Any, *indices: Any) -> Any:
        """Emit the intermediate stores and return the result's expression."""
        cells = iter(self._cells)

        def store(value: Any) -> Any:
            cell = next(cells)
            T.buffer_store(cell, value, list(indices))
            return cell[tuple(indices)]

        return self._run(store, element)

    def _run(self, name: Callable[[Any], Any], element: Any) -> Any:
        outer, Formula._current = Formula._current, name
        try:
            return self._function(element)
        finally:
            Formula._current = outer

    @classmethod
    def name(cls, value: Any) -> Any:
        """The value under a name of its own."""
        assert cls._current is not None, "let() outside a Formula"
        return cls._current(value)


def let(value: Any, body: Callable[[Any], Any]) -> Any:
    """``body`` of the value, which is computed once. Only inside a `Formula`."""
    return body(Formula.name(value))


def exp(x: Any) -> Any:
    """Give e to the x: 0 below -104, infinity above 88.73, gradual underflow between."""
    return _libm("exp", x) if _is_double(x) else let(x, _exp)


def _exp(x: Any) -> Any:
    def reduced(clipped: Any) -> Any:
        # Added to a float that has no digits behind the point, a number is rounded to an integer,
        # which stands in the last bits of the sum. No conversion: armv7 and old x86 round a vector
        # only through the C library, and NaN would be undefined.
        total = clipped * const(1.44269504088896341, x) + const(_WHOLE, x)
        return let(total, lambda total: rounded(total, clipped))

    def rounded(total: Any, clipped: Any) -> Any:
        whole = tirx.reinterpret("int32", total) - tirx.const(_WHOLE_BITS, "int32")
        n = total - const(_WHOLE, x)
        return let(n, lambda n: scaled(n, whole, clipped - n * const(_LN2_HIGH, x)))

    def scaled(n: Any, whole: Any, high: Any) -> Any:
        return let(
            high - n * const(_LN2_LOW, x),
            lambda r: let(
                _horner(r, _EXP) * r * r + r + const(1.0, x),
                lambda mantissa: let(whole, lambda whole: raised(mantissa, whole)),
            ),
        )

    def raised(mantissa: Any, whole: Any) -> Any:
        # Two factors, since 2**n alone leaves the range of a float at both ends.
        half = tirx.shift_right(whole, tirx.const(1, "int32"))
        return let(half, lambda half: _power_of_two(half) * mantissa * _power_of_two(whole - half))

    inner = let(_clamp(x, -105.0, 89.0), reduced)
    return tirx.Select(tirx.isnan(x), x, inner)


def _clamp(x: Any, low: float, high: float) -> Any:
    return let(maximum(x, const(low, x)), lambda v: minimum(v, const(high, x)))


def _power_of_two(n: Any) -> Any:
    return _float_from_bits(tirx.shift_left(n + tirx.const(127, "int32"), tirx.const(23, "int32")))


def expm1(x: Any) -> Any:
    """exp(x) - 1, right near 0 too."""
    return _libm("expm1", x) if _is_double(x) else let(x, _expm1)


def _expm1(x: Any) -> Any:
    near = x + x * x * _horner(x, _EXP)
    small = tirx.abs(x) < const(0.34, x)
    return tirx.Select(small, near, exp(x) - const(1.0, x))


def log(x: Any) -> Any:
    """The natural logarithm of x > 0; -infinity at 0, NaN below."""
    return _libm("log", x) if _is_double(x) else let(x, _log)


def _log(x: Any) -> Any:
    tiny = x < const(1.17549435e-38, x)

    def split(bits: Any) -> Any:
        exponent = tirx.shift_right(bits, tirx.const(23, "int32")) - tirx.const(126, "int32")
        fraction = tirx.bitwise_or(
            tirx.bitwise_and(bits, tirx.const(0x7FFFFF, "int32")), tirx.const(0x3F000000, "int32")
        )
        return let(_float_from_bits(fraction), lambda m: series(exponent.astype("float32"), m))

    def series(exponent: Any, m: Any) -> Any:
        low = m < const(0.70710678118, x)
        e = exponent - tirx.Select(low, const(1.0, x), const(0.0, x))
        e = e - tirx.Select(tiny, const(25.0, x), const(0.0, x))
        f = tirx.Select(low, m + m, m) - const(1.0, x)
        return let(e, lambda e: let(f, lambda f: let(f * f, lambda z: total(e, f, z))))

    def total(e: Any, f: Any, z: Any) -> Any:
        y = _horner(f, _LOG) * z * f + e * const(_LN2_LOW, x) - const(0.5, x) * z
        return f + y + e * const(_LN2_HIGH, x)

    scaled = tirx.Select(tiny, x * const(2.0**25, x), x)
    value = let(tirx.reinterpret("int32", scaled), split)
    infinity = const(float("inf"), x)
    value = tirx.Select(x == infinity, x, value)
    value = tirx.Select(x == const(0.0, x), const(float("-inf"), x), value)
    return tirx.Select(x >= const(0.0, x), value, const(float("nan"), x))


def log1p(x: Any) -> Any:
    """log(1 + x) for x in [0, 1], the only range the activations need in float32."""
    if _is_double(x):
        return _libm("log1p", x)

    def corrected(x: Any, u: Any) -> Any:
        # log(1 + x) corrected for the rounding of 1 + x.
        return log(u) + (x - (u - const(1.0, x))) / u

    return let(x, lambda x: let(x + const(1.0, x), lambda u: corrected(x, u)))


def tanh(x: Any) -> Any:
    """The hyperbolic tangent."""
    return _libm("tanh", x) if _is_double(x) else let(x, _tanh)


def _tanh(x: Any) -> Any:
    a = minimum(tirx.abs(x), const(20.0, x))

    def ratio(e: Any) -> Any:
        return let(
            e / (e + const(2.0, x)), lambda value: tirx.Select(x < const(0.0, x), -value, value)
        )

    value = let(a, lambda a: let(expm1(a + a), ratio))
    return tirx.Select(tirx.isnan(x), x, value)


def erf(x: Any) -> Any:
    """The error function."""
    return _libm("erf", x) if _is_double(x) else let(x, _erf)


def _erf(x: Any) -> Any:
    one = const(1.0, x)

    def outer(a: Any) -> Any:
        t = one / (one + const(0.3275911, x) * a)
        value = let(t, lambda t: one - _horner(t, _ERF) * t * exp(-(a * a)))
        return let(value, lambda value: tirx.Select(x < const(0.0, x), -value, value))

    # The rational form loses digits around 0, where the series is exact.
    series = let(
        x * x,
        lambda z: x * _horner(z, (0.0052239776, -0.026866171, 0.11283792, -0.37612638, 1.1283792)),
    )
    value = let(tirx.abs(x), lambda a: tirx.Select(a < const(0.5, x), series, outer(a)))
    return tirx.Select(tirx.isnan(x), x, value)
