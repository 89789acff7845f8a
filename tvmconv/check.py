"""The check that every artifact passes before it is handed over.

The library against the definition.

Small layers are compared whole with the reference. Large ones are run whole too, on their real
shape, and compared on voxels drawn at random, with all corners among them, each computed from the
definition by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tvmconv import reference
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.config import LayerConfig

__all__ = ["Result", "Runnable", "Trial", "compare", "worst"]

#: Floating-point operations up to which the whole layer is compared.
_WHOLE = 2e8
_VOXELS = 96
#: Absolute and relative, as for the golden cases, of the compute dtype.
_TOLERANCE = {"tf32": 2e-3, "float32": 1e-4, "float64": 1e-6, "float16": 8e-3, "bfloat16": 6e-2}


@dataclass(frozen=True)
class Result:
    """The largest error of one shape.

    Relative to the largest reference value where that is above 1.
    """

    error: float
    tolerance: float
    voxels: int

    @property
    def good(self) -> bool:
        """Whether the error is within the tolerance (a NaN is not)."""
        return self.error <= self.tolerance


class Runnable(Protocol):
    """A compiled layer, wherever it runs."""

    def replace_weights(self, weights: Sequence[Any]) -> None:
        """Compute with ``[kernel, bias]``, or ``[kernel]``, from now on."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The layer's output."""


def worst(results: Sequence[Result]) -> Result:
    """The result with the largest error for its tolerance; a bad one before every good one."""
    # A NaN compares as neither larger nor smaller: one that is not good comes first.
    by_error = sorted(results, key=lambda result: -result.error / result.tolerance)
    return ([result for result in results if not result.good] or by_error)[0]


def compare(
    layer: Runnable,
    works: list[Workload],
    config: LayerConfig,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    precision: str = "full",
) -> list[Result]:
    """Compare a layer with the reference, on every shape, with random weights: see `Trial`."""
    return Trial(works, config, kernel, bias).compare(layer, precision)


class Trial:
    """Random weights and inputs, and what the definition makes of them.

    Several libraries of a layer are compared with one of these. It keeps the input that was drawn
    last: of one shape, all that there is.

    Parameters
    ----------
    works, config
        What is computed, on each shape.
    kernel, bias
        Stand-ins: they are replaced by random numbers of a telling scale, since weights that are
        zero, not finite or huge would prove nothing.
    """

    def __init__(
        self,
        works: Sequence[Workload],
        config: LayerConfig,
        kernel: np.ndarray,
        bias: np.ndarray | None,
    ) -> None:
        self._works, self._config = works, config
        self._rng = np.random.default_rng(20)
        self._kernel, self._bias = _telling(self._rng, kernel, bias)
        self._state = self._rng.bit_generator.state
        self._drawn: tuple[int, _Case] | None = None

    def case(self, index: int = 0) -> _Case:
        """The input of one shape, and the output that is expected."""
        if self._drawn is None or self._drawn[0] != index:
            self._drawn = None
            self._rng.bit_generator.state = self._state
            work = self._works[index]
            self._drawn = index, _drawn(self._rng, work, self._config, self._kernel, self._bias)
        return self._drawn[1]

    def compare(self, layer: Runnable, precision: str = "full") -> list[Result]:
        """How far a layer is from the definition, on every shape."""
        weights = [self._kernel] if self._bias is None else [self._kernel, self._bias]
        layer.replace_weights(weights)
        results = []
        for index, work in enumerate(self._works):
            case = self.case(index)
            found = case.of(layer(case.x))
            error = 0.0
            if found.size:
                scale = max(1.0, float(np.max(np.abs(case.expected))))
                error = float(np.max(np.abs(found - case.expected))) / scale
            tolerance = _TOLERANCE[precision if precision == "tf32" else work.input_dtype]
            results.append(Result(error, tolerance, found.size // max(1, work.plan.filters)))
        return results


@dataclass(frozen=True)
class _Case:
    """An input, and what the definition makes of it.

    Attributes
    ----------
    voxels : tuple of (sample, depth, height, width), optional
        Which outputs are expected, a row each; None: the whole output.
    """

    x: np.ndarray
    expected: np.ndarray
    voxels: tuple[tuple[int, ...], ...] | None = None
    channels_first: bool = False

    def of(self, y: np.ndarray) -> np.ndarray:
        """The outputs that are compared."""
        if self.voxels is None:
            return y.astype(np.float64)
        last = np.moveaxis(y, 1, -1) if self.channels_first else y
        return np.array([last[voxel].astype(np.float64) for voxel in self.voxels])


def _drawn(
    rng: np.random.Generator,
    work: Workload,
    config: LayerConfig,
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> _Case:
    """Draw the input of a shape."""
    batch = work.plan.batch if work.plan.batch >= 0 else 2
    large = work.plan.flops > _WHOLE
    if large and 0 not in work.mixed_axes:
        batch = min(batch, 1) if work.plan.batch < 0 else batch
    x = rng.standard_normal((batch, *work.plan.input_shape[1:]), dtype=np.float32)
    x = x.astype(numpy_dtype(work.input_dtype), copy=False)
    if not large or work.mixed_axes:
        return _Case(x, reference.conv3d_transpose(config, x, kernel, bias))
    return _sampled(rng, work, config, x, kernel, bias)


def _telling(
    rng: np.random.Generator, kernel: np.ndarray, bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Weights that show an error: finite, none all zero, sums of order one."""
    fan = max(1, int(np.prod(kernel.shape[:3])) * kernel.shape[4])
    drawn = rng.standard_normal(kernel.shape, dtype=np.float32) / np.sqrt(fan)
    start = None
    if bias is not None:
        start = rng.standard_normal(bias.shape, dtype=np.float32).astype(bias.dtype)
    return drawn.astype(kernel.dtype), start


def _sampled(
    rng: np.random.Generator,
    work: Workload,
    config: LayerConfig,
    x: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> _Case:
    """Voxels of the output, each from the definition by itself."""
    whole, x = x, np.moveaxis(x, 1, -1) if work.plan.channels_first else x
    sizes = (x.shape[0], *(axis.out for axis in work.plan.axes))
    corners = list(itertools.product(*({0, size - 1} for size in sizes)))
    drawn = [tuple(int(rng.integers(size)) for size in sizes) for _ in range(_VOXELS)]
    compute = numpy_dtype(work.input_dtype)
    taps = kernel.astype(compute).astype(np.float64)
    start = 0.0 if bias is None else bias.astype(compute).astype(np.float64)
    expected = []
    for n, *place in corners + drawn:
        total = np.zeros(work.plan.filters) + start
        choices = [
            [
                (tap, (out + axis.lo - tap * axis.dilation) // axis.stride)
                for tap in range(axis.kernel)
                if (out + axis.lo - tap * axis.dilation) % axis.stride == 0
                and 0 <= (out + axis.lo - tap * axis.dilation) // axis.stride < axis.size
            ]
            for axis, out in zip(work.plan.axes, place, strict=True)
        ]
        for (a, d), (b, h), (c, w) in itertools.product(*choices):
            total += taps[a, b, c] @ x[n, d, h, w].astype(np.float64)
        expected.append(config.activation.evaluate(total))
    voxels = tuple((n, *place) for n, *place in corners + drawn)
    return _Case(whole, np.array(expected), voxels, work.plan.channels_first)
