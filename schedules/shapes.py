"""Forms for several shapes of one layer, which share packed weights.

The rules choose for one shape. Where their choices differ, one form serves all: the one that needs
the fewest cycles for a sample of each together, so that a large volume does not pay for a small
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.schedules.cpu import column, direct, dot, phase, toom_cook, voxel

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["cheapest_direct", "shared_toom_cook"]


def shared_toom_cook(
    works: Sequence[Workload], target: CpuTarget, *, exact: bool, always: bool
) -> list[Tiling]:
    """Toom-Cook with the scheme that is best for the largest shape.

    Empty where it does not serve a shape or, unless ``always``, is not clearly cheaper than the
    direct forms for all together.
    """
    if any(toom_cook.refusal(work, exact=exact) for work in works):
        return []
    layout = toom_cook.require(_largest(works), target, exact=exact)
    tilings = [toom_cook.with_layout(layout, work, target) for work in works]
    found = [tiling for tiling in tilings if tiling is not None]
    if len(found) < len(works) or not (always or toom_cook.pays(works, found, target)):
        return []
    return found


def cheapest_direct(
    works: Sequence[Workload], target: CpuTarget, *, exact: bool, columns: bool
) -> list[Tiling]:
    """The cheapest of the direct forms that serve every shape; empty where none does."""
    found: list[tuple[float, list[Tiling]]] = []
    for tilings in (
        _dots(works, target, exact=exact) if columns else [],
        _columns(works, target) if columns else [],
        [voxel.decide(one, target, exact=exact, always=True) for one in works],
        [phase.decide(one, target, exact=exact) for one in works],
    ):
        fitting = [tiling for tiling in tilings if tiling is not None]
        if len(fitting) == len(works):
            pairs = zip(works, fitting, strict=True)
            cycles = sum(direct.compared(work, target, tiling) for work, tiling in pairs)
            found.append((cycles, fitting))
    return min(found, key=lambda one: one[0], default=(math.inf, []))[1]


def _dots(works: Sequence[Workload], target: CpuTarget, *, exact: bool) -> list[Tiling | None]:
    """The weights of all shapes lie alike."""
    if works[0].plan.channels_first:
        return []
    return [dot.decide(work, target, exact=exact, always=True) for work in works]


def _columns(works: Sequence[Workload], target: CpuTarget) -> list[Tiling | None]:
    layout = column.decide(_largest(works), target, always=True)
    if layout is None:
        return []
    return [column.decide(work, target, layout=layout) for work in works]


def _largest(works: Sequence[Workload]) -> Workload:
    return max(works, key=lambda work: math.prod(work.plan.output_shape[1:]))
