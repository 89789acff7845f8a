"""The phase form in registers of half the length, where these leave fewer lanes empty.

A core that multiplies its widest registers in two halves takes as long for two of half the length:
20 filters are three of these, or two whole ones, of which the second is nearly empty.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tvmconv.compute.phase import computed
from tvmconv.schedules.cpu import phase
from tvmconv.schedules.cpu.pace import in_halves

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["halved"]

#: Cycles to begin and end a register of sums whose outputs go to memory, whole and of half the
#: length, and those of a step of half registers beside those of whole ones, which are as wide.
#: Fitted on 42 random layers of Zen 4.
_ENDS, _ENDS_OF_HALF, _STEPS = 10.0, 7.4, 1.04


def halved(work: Workload, target: CpuTarget, tiling: Tiling) -> Tiling:
    """A tiling, or that of half registers where it costs less.

    Not where stationary tiles wait for their weights.
    """
    size = 8 if work.accumulate_dtype == "float64" else 4
    vector = tiling.vector
    widest = 8 * vector * size == target.vector_bits
    if tiling.form != "phase" or tiling.stationary or not (widest and in_halves(target)):
        return tiling
    folded = computed(work, tiling)
    whole = -(-folded.plan.filters // vector)
    halves = -(-2 * folded.plan.filters // vector)
    steps = phase.mean_steps(folded)
    if halves * (_STEPS * steps / 2 + _ENDS_OF_HALF) >= whole * (steps + _ENDS):
        return tiling
    inner = work.couple() if tiling.coupled else work
    found = phase.decide(inner, target, lanes=vector // 2)
    return dataclasses.replace(found, coupled=tiling.coupled) if found else tiling
