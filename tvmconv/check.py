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
    from tvmconv.artifact import Artifact
    from tvmconv.compute.workload import Workload
    from tvmconv.config import LayerConfig

__all__ = ["Result", "Runnable", "compare", "run", "worst"]

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


def run(
    artifact: Artifact,
    works: list[Workload],
    config: LayerConfig,
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> list[Result]:
    """Compare an artifact with the reference, on every shape, with random weights.

    The kernel is replaced by random numbers of its scale where it is zero, not finite or huge: such
    weights would prove nothing.
    """
    return compare(artifact.load(), works, config, kernel, bias)


def compare(
    layer: Runnable,
    works: list[Workload],
    config: LayerConfig,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    precision: str = "full",
) -> list[Result]:
    """As `run`, for a layer that is loaded already, or that runs elsewhere."""
    rng = np.random.default_rng(20)
    kernel, bias = _telling(rng, kernel, bias)
    layer.replace_weights([kernel] if bias is None else [kernel, bias])
    results = []
    for work in works:
        batch = work.plan.batch if work.plan.batch >= 0 else 2
        large = work.plan.flops > _WHOLE
        if large and 0 not in work.mixed_axes:
            batch = min(batch, 1) if work.plan.batch < 0 else batch
        x = rng.standard_normal((batch, *work.plan.input_shape[1:]), dtype=np.float32)
        x = x.astype(numpy_dtype(work.input_dtype))
        y = layer(x)
        whole = not large or bool(work.mixed_axes)
        if whole:
            expected = reference.conv3d_transpose(config, x, kernel, bias)
            found = y.astype(np.float64)
        else:
            expected, found = _sampled(rng, work, config, x, y, kernel, bias)
        error = 0.0
        if found.size:
            scale = max(1.0, float(np.max(np.abs(expected))))
            error = float(np.max(np.abs(found - expected))) / scale
        tolerance = _TOLERANCE[precision if precision == "tf32" else work.input_dtype]
        results.append(Result(error, tolerance, found.size // max(1, work.plan.filters)))
    return results


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
    y: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the output, by the definition and as found: two arrays (voxels, filters)."""
    if work.plan.channels_first:
        x, y = np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)
    sizes = (x.shape[0], *(axis.out for axis in work.plan.axes))
    corners = list(itertools.product(*({0, size - 1} for size in sizes)))
    drawn = [tuple(int(rng.integers(size)) for size in sizes) for _ in range(_VOXELS)]
    compute = numpy_dtype(work.input_dtype)
    taps = kernel.astype(compute).astype(np.float64)
    start = 0.0 if bias is None else bias.astype(compute).astype(np.float64)
    expected, found = [], []
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
        voxel = (n, *place)
        found.append(y[voxel].astype(np.float64))
    return np.array(expected), np.array(found)
