"""Which tiling of Toom-Cook is taken where a little dearer one has less scratch, or less code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.schedules.cpu.toom_cook_steps import code_bytes
from tvmconv.schedules.cpu.traits import adders_apart, brings_late

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.schedules.cpu.candidate import Candidate
    from tvmconv.targets import CpuTarget

__all__ = ["with_less"]

#: Scratch of all tasks together that is nothing beside the tensors (a share of them, or bytes), and
#: how many times the cycles it may cost to stay below.
_SMALL_SHARE, _SMALL_SCRATCH, _COST = 0.05, 3.9e6, 1.03
#: Share of the last-level cache that the scratch of all cores, or twice that of one, had better
#: stay below: it holds the weights that all tasks read, too. By measurement on Zen 4: on two cores
#: a layer with 16 MB a core took 1.0 to 1.25 times as long as with 6, as others used that cache.
_SHARED = 0.5
#: Bytes of code by the estimate beyond which filters had better be one group, whose register tiles
#: are all the same code. By measurement on Zen 3: 64 to 64 filters, kernel 3, stride 2, took 0.97
#: to 0.98 of the time with 53 for 88 kB of code, made in 0.6 of the time.
_MUCH_CODE = 80e3


def with_less(work: Workload, target: CpuTarget, found: list[Candidate]) -> Candidate:
    """The cheapest; a little dearer one where that keeps a call's memory, or its caches, small."""
    best = min(found, key=lambda one: one.cycles)
    plan = work.plan
    tensors = [plan.input_shape[1:], plan.output_shape[1:], plan.kernel_shape]
    small = max(_SMALL_SHARE * 4 * sum(map(math.prod, tensors)), _SMALL_SCRATCH) / target.cores
    limits = [small]
    if adders_apart(target):
        limits.append(_SHARED * target.last_level_bytes / max(2, target.cores))
    near = [one for one in found if one.cycles <= _COST * best.cycles]
    if brings_late(target) and code_bytes(ToomCookForm(work, best.tiling)) > _MUCH_CODE:
        whole = [one for one in near if len(ToomCookForm(work, one.tiling).groups) == 1]
        near = whole or near
        best = min(near, key=lambda one: one.cycles)
    for limit in limits:
        few = [one for one in near if one.scratch <= limit]
        if few:
            return min(few, key=lambda one: one.cycles)
    return best
