"""Random layers that the Toom-Cook form serves, taps enough along each axis, and their errors."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from kernels import Kernel, target

from tvmconv import schedules
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import toom_cook

#: Two roundings of the largest result: what the error may be where the direct form is almost exact
#: by chance.
FLOOR = 2.0**-22


def cook_layers(
    rng: random.Random, most: int, channels: tuple[int, int], flops: float
) -> Iterator[tuple[LayerConfig, tuple[int, ...], Workload]]:
    """Layers without end: of 3 to ``most`` inputs an axis, ``channels`` from one to the other."""
    while True:
        strides = rng.choice(((2, 2, 2), (1, 1, 1), (1, 2, 2), (2, 1, 3)))
        kernel = tuple(rng.choice((s + 1, 2 * s, 2 * s + 1, 3 * s)) for s in strides)
        first = rng.random() < 0.25
        config = LayerConfig(
            rng.randint(1, 40), kernel, strides, rng.choice(("same", "valid")),
            data_format="channels_first" if first else "channels_last",
        )  # fmt: skip
        sizes = tuple(rng.randint(3, most) for _ in range(3))
        some = rng.randint(*channels)
        shape = (1, some, *sizes) if first else (1, *sizes, some)
        work = Workload.of(config, shape).joined()
        if toom_cook.refusal(work) is None and work.plan.flops <= flops:
            yield config, shape, work


def errors(
    config: LayerConfig, shape: tuple[int, ...], tiling: Tiling, seed: int
) -> tuple[float, float]:
    """The largest errors of a tiling and of the direct form, over the largest result.

    Beside the reference in float64, on random numbers.
    """
    rng = np.random.default_rng(seed)
    weights = config.weight_shapes(shape[config.channel_axis])
    arrays = [rng.standard_normal(some).astype(np.float32) for some in (shape, *weights)]
    expected = conv3d_transpose(config, *arrays)
    plain = schedules.decide(Workload.of(config, shape), target(), columns=False)
    ours, direct = (
        np.max(np.abs(Kernel(config, shape, tiling=one, ships=ships)(*arrays, numbers) - expected))
        for one, ships, numbers in ((tiling, True, rng), (plain, False, None))
    )
    scale = np.max(np.abs(expected), initial=1e-30)
    return float(ours / scale), float(direct / scale)
