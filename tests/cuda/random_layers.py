"""Random layers with random tilings without a GPU: what the tests of all forms do with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cuda_samples import Emulated, Serial
from test_properties import Example, allowed, data, plain, rounding

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.reference import conv3d_transpose

Kind = type[Serial] | type[Emulated]
Arrays = tuple[np.ndarray, np.ndarray, "np.ndarray | None"]


def output(
    kind: Kind,
    config: LayerConfig,
    shape: Sequence[int],
    tiling: CudaTiling,
    arrays: Arrays,
    orders: Sequence[int],
) -> np.ndarray:
    """The output of a layer, which has the same bits in all orders of the threads."""
    layer = kind(config, shape, tiling)
    first, *others = (layer.run(*arrays, order) for order in orders)
    assert all(one.tobytes() == first.tobytes() for one in others)
    return first


def check(
    kind: Kind,
    example: Example,
    tiling: CudaTiling,
    orders: Sequence[int],
    rounded: Any = lambda _work, arrays: arrays,
) -> None:
    """Compare a layer with the reference; ``rounded`` says what its products are of."""
    arrays = data(example)
    batch = -1 if example.open_batch else example.shape[0]
    y = output(kind, example.config, (batch, *example.shape[1:]), tiling, arrays, orders)
    compare(example, y, rounded(example.work, arrays))


def compare(example: Example, y: np.ndarray, arrays: Arrays) -> None:
    """Fail unless the output is the reference's but for what rounding explains."""
    x, kernel, bias = arrays
    expected = conv3d_transpose(example.config, x, kernel, bias)
    assert y.shape == expected.shape
    assert y.dtype == numpy_dtype(example.config.output_dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        # Every mixing activation waits in the output for its kernel, but glu.
        error = np.abs(y.astype(np.float64) - expected)
        limit = allowed(example, x, kernel, bias, expected)
        if example.work.mixed_axes and example.config.activation.name != "glu":
            limit = limit + waiting(example, arrays)
        wrong = (error > limit) | np.isnan(y)
        wrong &= y != expected.astype(y.dtype)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} differ, first at {np.argwhere(wrong)[0]}: "
        f"{y[wrong][0]} instead of {expected[wrong][0]}, allowed {limit[wrong][0]:.3g}"
    )


def waiting(example: Example, arrays: Arrays) -> float:
    """What rounding the sums to the output dtype may add, with a slope of 2 as `allowed` has it."""
    x, kernel, bias = (None if one is None else np.abs(one) for one in arrays)
    largest = float(conv3d_transpose(plain(example.config), x, kernel, bias).max(initial=0.0))
    return 2 * rounding(example.config.output_dtype) * largest
