"""Inputs of the Toom-Cook form, channels first: rows that two blocks read are moved in scratch."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from kernels import Kernel
from turns import few, turns

from tvmconv.compute.tiling import Tiling
from tvmconv.config import LayerConfig


@pytest.mark.parametrize(
    ("kernel", "stride", "outputs", "block", "paired"),
    [
        *turns(
            (
                (3, 1, (2, 4, 4), (2, 1, 3)),
                (3, 1, (2, 2, 2), (1, 2, 6)),
                ((2, 4, 4), (1, 2, 2), (2, 3, 2), (2, 1, 6)),
                ((3, 5, 5), (1, 2, 2), (2, 2, 2), (1, 3, 6)),
            ),
            (True, False),
        ),
        # Eight phases are much code.
        *few(((4, 2, (2, 3, 2), (2, 1, 6), True), (5, 2, (2, 2, 2), (1, 3, 6), False)), ()),
    ],
)
def test_rows_of_the_block_before_are_moved(
    kernel: int | tuple[int, int, int],
    stride: int | tuple[int, int, int],
    outputs: tuple[int, int, int],
    block: tuple[int, int, int],
    paired: bool,
) -> None:
    """Calls that begin anywhere give the bits of blocks that copy all of their rows."""
    config = LayerConfig(24, kernel, stride, "same", data_format="channels_first")
    shape, rng = (2, 27, 5, 13, 12), np.random.default_rng(kernel)
    x, taps, bias = (
        rng.standard_normal(some).astype(np.float32) for some in (shape, *config.weight_shapes(27))
    )
    tiling = Tiling(
        "toom-cook", 16, 1, 8 if paired else 3, 1, outputs=outputs, block=block, shared=2,
        paired=paired, stretch=8,
    )  # fmt: skip
    plain = Kernel(config, shape, tiling=tiling)
    moving = Kernel(config, shape, tiling=dataclasses.replace(tiling, compact=True))
    packed = moving.packed(taps, bias)
    expected = plain.run(x, packed)
    np.testing.assert_array_equal(moving.run(x, packed), expected)
    count = moving.tiles(2)
    cuts = [0, *sorted(rng.choice(np.arange(1, count), min(3, count - 1), replace=False)), count]
    ranges = [(int(a), int(b)) for a, b in itertools.pairwise(cuts)]
    np.testing.assert_array_equal(moving.run(x, packed, ranges[::-1]), expected)
