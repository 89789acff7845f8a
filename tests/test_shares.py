"""How evenly tasks that are not alike fall to the threads of a call."""

from __future__ import annotations

import dataclasses

import pytest
from kernels import target

from tvmconv import schedules
from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig
from tvmconv.schedules.cpu.shares import uneven


@pytest.mark.parametrize(
    ("costs", "cores", "expected"),
    [
        ((1.0,) * 18, 2, 1.0),
        ((1.0,) * 15, 2, 16 / 15),
        ((1.0,) * 5, 1, 1.0),
        # The long one begins after the short one before it.
        ((1.0, 1.0, 1.0, 4.0), 2, 10 / 7),
        # Who has short tasks takes what the other has left.
        ((2.0, 2.0, 2.0, 2.0, 0.5, 0.5, 0.5, 0.5), 2, 1.2),
        ((1.0,), 4, 4.0),
    ],
)
def test_shares(costs: tuple[float, ...], cores: int, expected: float) -> None:
    """As long as the last thread takes, beside an equal division of the work."""
    assert uneven(costs, cores) == pytest.approx(expected)


def test_blocks_of_pairs_that_divide_evenly() -> None:
    """Ten blocks of three and two rows, the last ones short, would leave a core waiting."""
    machine = dataclasses.replace(target("znver4"), l2_bytes=1 << 20, cores=2)
    work = Workload.of(LayerConfig(64, 4, 2, "same"), (1, 13, 13, 13, 128)).joined()
    tiling = schedules.decide(work, machine, algorithm="auto")
    assert tiling.paired
    assert tiling.block == (1, 1, 7)
