"""Random layers with random tilings without a GPU: what the tests of all forms do with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from cuda_samples import Emulated, Serial
from test_properties import Arrays, Example, compare, data, plain, rounding

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose

Kind = type[Serial] | type[Emulated]


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
    arrays = rounded(example.work, arrays)
    # Every mixing activation waits in the output for its kernel, but glu.
    mixes = example.work.mixed_axes and example.config.activation.name != "glu"
    compare(example, y, arrays, waiting(example, arrays) if mixes else 0.0)


def waiting(example: Example, arrays: Arrays) -> float:
    """What rounding the sums to the output dtype may add, with a slope of 2 as `allowed` has it."""
    x, kernel, bias = (None if one is None else np.abs(one) for one in arrays)
    with np.errstate(over="ignore", invalid="ignore"):
        largest = float(conv3d_transpose(plain(example.config), x, kernel, bias).max(initial=0.0))
    return 2 * rounding(example.config.output_dtype) * largest
