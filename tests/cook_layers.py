"""Random layers that the Toom-Cook form serves, each axis with taps enough to gain."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.schedules.cpu import toom_cook


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
