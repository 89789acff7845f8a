"""Schedules: which tiling a workload gets on a target, and how its loops become fast code.

Each file of a target's folder is one rule. A rule answers None ("not mine") or a tiling; the first answer is taken, and the last rule
always fits. The same file applies the schedule primitives to the algorithm that the tiling was lowered to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvmconv.errors import ScheduleError

if TYPE_CHECKING:
    from tvmconv.compute import Lowered
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["Scheduled", "apply", "decide"]


@dataclass(frozen=True)
class Scheduled:
    """A scheduled kernel and where its decisions came from (``default`` or ``record:<id>``)."""

    lowered: Lowered
    kernel: Any
    origin: str


def decide(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling:
    """The default tiling of a workload on a target.

    Parameters
    ----------
    work : Workload
        What is computed.
    target : CpuTarget
        Registers, caches and cores that the cost model asks for.
    exact : bool
        Only forms that put NaN and infinities of the *kernel* exactly where the definition does.
    """
    from tvmconv.schedules.cpu import definition, phase

    for rule in (phase, definition):
        tiling = rule.decide(work, target, exact=exact)
        if tiling is not None:
            return tiling
    raise ScheduleError(f"no schedule rule took {work}")


def apply(lowered: Lowered, origin: str = "default") -> Scheduled:
    """Apply the schedule primitives to a lowered kernel."""
    from tvmconv.schedules.cpu import registers

    return Scheduled(lowered, registers.apply(lowered.kernel, lowered.tiling), origin)
