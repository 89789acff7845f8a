"""Register tiles that ask for the inputs of later ones: where, and with the same results."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from kernels import Kernel, target, variants, whole_numbers

from tvmconv import schedules
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.reference import conv3d_transpose
from tvmconv.schedules.cpu import phase

BASE = Tiling("phase", 4, 2, 3, 2, fold=True, pack=False, fetch=True)


def layer(filters: int, kernel: object, **more: object) -> LayerConfig:
    return LayerConfig(filters, kernel, strides=kernel, activation="relu", **more)


def asked(kernel: Kernel) -> int:
    """Places in the code that ask for inputs; outputs are asked for, too."""
    lines = kernel.code.tir.splitlines()
    return sum("llvm.prefetch" in line and "address_of(input" in line for line in lines)


@pytest.mark.parametrize(
    ("filters", "kernel", "channels", "tiling"),
    [
        (5, (2, 2, 2), 19, BASE),  # a last block of fewer registers, which asks for nothing
        (3, (1, 2, 2), 33, variants(BASE, registers=3, width=4)),  # all blocks are one
        (11, (2, 1, 1), 6, variants(BASE, channels_outer=False)),
        (7, (3, 2, 1), 5, variants(BASE, vector=8, registers=1, rows=3)),
        (8, (1, 3, 2), 7, variants(BASE, fold=False, registers=1)),  # phases of the width
        (16, (2, 2, 2), 9, variants(BASE, splits=4)),  # tasks that share rows
        (6, (2, 2, 2), 21, variants(BASE, width=17)),  # more than a line in a step
    ],
)
def test_whole_numbers_are_exact(
    filters: int, kernel: tuple[int, ...], channels: int, tiling: Tiling
) -> None:
    config, shape = layer(filters, kernel), (2, 3, 5, 7, channels)
    rng = np.random.default_rng(filters)
    x, weights, bias = whole_numbers(config, shape, rng)
    built = Kernel(config, (-1, *shape[1:]), tiling=tiling)
    assert PhaseForm(built.work, built.tiling).asks
    assert asked(built) > 0
    y = built(x, weights, bias, rng)
    np.testing.assert_array_equal(y, conv3d_transpose(config, x, weights, bias))


def test_only_first_tiles_ask() -> None:
    """One loop of products asks; a tile of another block or output row has one that does not."""
    config, shape = layer(8, (1, 2, 2)), (1, 3, 5, 7, 19)
    few = variants(BASE, registers=2, width=7)  # one width of tiles
    assert asked(Kernel(config, shape, tiling=variants(few, fetch=False))) == 0
    assert asked(Kernel(config, shape, tiling=few)) == 1


@pytest.mark.parametrize(
    "changes", [{"pack": True}, {"stationary": True}, {"fetch": False}, {"coupled": True}]
)
def test_others_do_not_ask(changes: dict[str, bool]) -> None:
    work = Workload.of(layer(8, (2, 2, 2)), (1, 3, 5, 7, 16))
    assert PhaseForm(work, BASE).asks
    assert not PhaseForm(work, variants(BASE, **changes)).asks


def test_taps_that_share_an_output_do_not_ask() -> None:
    config = LayerConfig(8, 3, strides=2, padding="same")
    assert not phase.can_ask(Workload.of(config, (1, 3, 5, 7, 16)), BASE)
    flat = Workload.of(LayerConfig(8, 1), (1, 3, 5, 7, 16))  # asks without
    assert PhaseForm(flat, variants(BASE, fetch=False)).asks and not phase.can_ask(flat, BASE)


@pytest.mark.parametrize(
    ("machine", "filters", "shape", "expected"),
    [
        ("znver3", 64, (1, 16, 32, 32, 128), True),
        ("znver3", 64, (1, 3, 8, 8, 128), False),  # the second-level cache holds the input
        ("znver4", 64, (1, 16, 32, 32, 128), False),
        ("haswell", 64, (1, 16, 32, 32, 128), False),
        ("cortex-a76", 64, (1, 16, 32, 32, 128), False),
    ],
)
def test_where_it_was_measured(
    machine: str, filters: int, shape: tuple[int, ...], expected: bool
) -> None:
    on = dataclasses.replace(target(machine), cores=2)
    tiling = schedules.decide(Workload.of(layer(filters, (1, 2, 2)), shape), on)
    assert tiling.form == "phase" and tiling.fetch == expected
