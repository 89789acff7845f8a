"""The rule of coupled channels: bfloat16 layers on processors that multiply two channels at once.

Strategy
  1. The phase rule's tiling of the same layer with half the channels, each of them 32 bits
     (`tvmconv.compute.coupling`): as many bytes of input, half the products, half the
     weights.
  2. Where no other direct form costs less: few filters have forms of their own.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tvmconv.schedules.cpu import direct, phase

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["coupled_tiling", "decide"]


def decide(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling | None:
    """The tiling of a workload where it is the cheapest of the direct ones; else None."""
    if exact:
        # An infinity times a subnormal number would be a NaN.
        return None
    cycles = direct.coupled_cycles(work, target)
    if cycles is None or cycles >= direct.uncoupled_cycles(work, target):
        return None
    return coupled_tiling(work, target)


def coupled_tiling(work: Workload, target: CpuTarget) -> Tiling | None:
    """The phase rule's tiling of coupled channels, cheaper or not; None where it has none."""
    inner = work.couple()
    tiling = phase.decide(inner, target)
    if inner is work or tiling is None:
        return None
    return dataclasses.replace(tiling, coupled=True)
