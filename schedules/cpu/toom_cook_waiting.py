"""Which Toom-Cook tiling is taken where channels-first outputs wait in scratch, and how they leave.

The model does not know how long the lines of the outputs stay in the core's own cache. The less
scratch there is, the longer they do; on Zen 4, where this cache holds the scratch, weights that are
read again and inputs that are summed again count for more, unless tasks may have parts of rows and
the cache holds the weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.frame import LINE_BYTES
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.policies import numpy_dtype
from tvmconv.schedules.cpu.traits import adders_apart

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.schedules.cpu.candidate import Candidate
    from tvmconv.targets import CpuTarget

__all__ = ["leaving", "waiting"]

#: How many times the cycles the least scratch may cost: all the less of it and of the lines of the
#: outputs leave the core's own cache too early. By measurement.
_WAITING_COST = 1.025
#: That cost on Zen 4, for scratch of whole rows that fills no more than this share of the cache.
_HELD_COST, _HELD = 1.01, 0.85
#: That share for parts of rows, since small ones copy more inputs twice, and the cost where less
#: scratch than the cheapest has is found at that price alone.
_PARTS_HELD, _SPILLED_COST = 1.5, 1.15
#: Weights of this share of the cache are read again for little, so that less scratch counts more
#: while it is above this one.
_FEW_WEIGHTS, _SMALL = 0.5, 0.4
#: What parts of rows cost that end within a line: a few shorter pieces.
_TORN = 1.06
#: Channels that leave scratch together there: its caches have so many lines a set, in which those
#: of several channels often meet.
_LEAVING = 8


def leaving(work: Workload, target: CpuTarget) -> int:
    """`Tiling.stretch`: channels that leave scratch together, 0 for a register of them."""
    return _LEAVING if adders_apart(target) and work.plan.channels_first else 0


def waiting(work: Workload, target: CpuTarget, found: list[Candidate]) -> Candidate:
    """Of those that cost little more than the best by the model, the one that is taken."""
    found = [replace(one, cycles=_torn(work, one)) for one in found]
    if adders_apart(target):
        found = _least_shared(found)
    best = min(found, key=lambda one: one.cycles)
    parts = any(_in_parts(work, one) for one in found)
    held = [one for one in found if one.scratch <= _room(work, one) * target.l2_bytes]
    if adders_apart(target) and (some := _near(held, best, _HELD_COST)):
        one = min(some, key=partial(_costs, work))
        few = parts and _weights(work, best) <= _FEW_WEIGHTS * target.l2_bytes
        if few and one.scratch > _SMALL * target.l2_bytes:
            return min(some, key=lambda one: (one.scratch, *_costs(work, one)))
        return one
    if parts and (some := _near(held, best, _SPILLED_COST)):
        return min(some, key=lambda one: one.cycles)
    near = _near(found, best, _WAITING_COST)
    # Little scratch in many blocks would read weights from far for each.
    if _weights(work, best) > target.l2_bytes:
        most = _weights_read(work, best)
        near = [one for one in near if _weights_read(work, one) <= most]
    return min(near, key=lambda one: (one.scratch, one.cycles))


def _least_shared(found: list[Candidate]) -> list[Candidate]:
    """Without those that share more axes for nothing: where an axis has one phase, say.

    The sums that they share are the same, and are found by more steps: 48 to 48 filters, stride 1,
    on 53x15x19 took 1.03 times as long.
    """
    kept: dict[object, Candidate] = {}
    for one in sorted(found, key=lambda one: one.tiling.shared):
        alike = (replace(one.tiling, shared=0), round(one.cycles), one.scratch)
        kept.setdefault(alike, one)
    return [*kept.values()]


def _near(found: list[Candidate], best: Candidate, cost: float) -> list[Candidate]:
    """Those of at most so many times the cycles."""
    return [one for one in found if one.cycles <= cost * best.cycles]


def _room(work: Workload, one: Candidate) -> float:
    """Share of the second-level cache that scratch may fill."""
    return _PARTS_HELD if _in_parts(work, one) else _HELD


def _in_parts(work: Workload, one: Candidate) -> bool:
    """Whether tasks have parts of rows."""
    return ToomCookForm(work, one.tiling).axes[2].blocks > 1


def _weights(work: Workload, one: Candidate) -> int:
    """Bytes of the packed weights."""
    return ToomCookForm(work, one.tiling).packed_size * 4


def _torn(work: Workload, one: Candidate) -> float:
    """Cycles, and what lines cost that two tasks write."""
    form = ToomCookForm(work, one.tiling)
    line = LINE_BYTES // numpy_dtype(work.output_dtype).itemsize
    torn = form.axes[2].blocks > 1 and form.rows_shape[3] % line
    return one.cycles * (_TORN if torn else 1.0)


def _costs(work: Workload, one: Candidate) -> tuple[float, ...]:
    """What counts there, in this order: weights, axes that are summed again, scratch."""
    return _weights_read(work, one), -one.tiling.shared, one.scratch, one.cycles


def _weights_read(work: Workload, one: Candidate) -> int:
    """Weights that the blocks of a sample read."""
    form = ToomCookForm(work, one.tiling)
    return form.packed_size * math.prod(axis.blocks for axis in form.axes)
