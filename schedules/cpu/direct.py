"""What the direct forms cost, by the model of the core, beside each other and beside Toom-Cook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu import column, column_rows, dot, few_filters, phase, voxel
from tvmconv.schedules.cpu.pace import of_widest, pace, waiting
from tvmconv.schedules.cpu.phase import register_tile
from tvmconv.schedules.cpu.phase_cycles import row_cycles
from tvmconv.schedules.cpu.traits import adders_apart, couples

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "NEAR_BYTES",
    "compared",
    "coupled_cycles",
    "cycles",
    "cycles_of_others",
    "stream",
    "uncoupled_cycles",
    "vector_lanes",
]

#: Bytes a cycle from the caches beyond the core's own and from memory, and what the former hold.
NEAR_BYTES, _FAR_BYTES = 16.0, 4.0
_SHARED_CACHE = 16 << 20
#: Share of the cycles that a phase kernel spends outside of its register tiles.
_PHASE_OVERHEAD = 1.06
#: Cycles of an output of the phase form with channels first, which is transposed and written to as
#: many places as there are filters, beside its products; by measurement on Zen 4, from so many
#: input channels on (below, the models of the other forms do not know this cost either).
_OUTPUT_FIRST, _LEAST_FIRST = 0.35, 24


def cycles(
    work: Workload, target: CpuTarget, *, couple: bool = True, leaving: bool = True
) -> float:
    """Cycles of a sample in the cheapest direct form; without ``couple``, of the others.

    Without ``leaving``, channels first, none to write the rows of the phase form.
    """
    found = uncoupled_cycles(work, target, leaving=leaving)
    coupled = coupled_cycles(work, target) if couple else None
    return found if coupled is None else min(found, coupled)


def cycles_of_others(work: Workload, target: CpuTarget, *, couple: bool = True) -> float:
    """Those that Toom-Cook is held against.

    Half a register of filters takes half the time of one, which the phase form's model does not
    know: then it is held against its products alone.
    """
    lanes = vector_lanes(work, target)
    half = 0 < work.plan.filters % lanes <= lanes // 2
    return cycles(work, target, couple=couple, leaving=not half)


def coupled_cycles(work: Workload, target: CpuTarget) -> float | None:
    """Cycles of a sample in the phase form of coupled channels; None where that is not taken."""
    inner = work.couple()
    if inner is work or not couples(target) or phase.decide(inner, target) is None:
        return None
    return _phase_cycles(inner, target)


def uncoupled_cycles(work: Workload, target: CpuTarget, *, leaving: bool = True) -> float:
    """Cycles of a sample in the cheapest of the other direct forms."""
    dots = dot.decide(work, target)
    if dots is not None:
        return dot.cycles(work, target, dots) * dot.far_share(work, target, dots)
    columns = column.decide(work, target)
    if columns is not None:
        return column.cycles(work, target, columns)
    if voxel.decide(work, target) is not None:
        return voxel.sample_cycles(work, target)
    return _phase_cycles(work, target) + (_leaving(work, target) if leaving else 0.0)


def _leaving(work: Workload, target: CpuTarget) -> float:
    """Cycles to write rows that are channels first."""
    plan = work.plan
    if not plan.channels_first or not adders_apart(target) or plan.in_channels < _LEAST_FIRST:
        return 0.0
    return _OUTPUT_FIRST * math.prod(plan.output_shape[1:])


def compared(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample in the form of a tiling, as the rules compare one form with another.

    The matrix form counts as the phase form, in whose place it stands.
    """
    if tiling.form == "dots":
        return dot.cycles(work, target, tiling) / dot.margin(work, target, tiling)
    if tiling.form == "columns":
        return column.cycles(work, target, tiling) / column_rows.margin(work, target)
    if tiling.form == "voxel":
        return voxel.sample_cycles(work, target)
    share = few_filters.share(work, target, "phase") or 1.0
    few = work.plan.filters < max(1, target.vector_bits // 32)
    return voxel.phase_cycles(work, target) * (share if few else 1.0)


def _phase_cycles(work: Workload, target: CpuTarget) -> float:
    """Cycles of a sample in the phase form."""
    depth, height, width = work.plan.axes
    tiling = phase.decide(work, target)
    if tiling is None or not tiling.fold:
        vector = vector_lanes(work, target)
        counts = [one.count for one in width.phases]
        tile = register_tile(work.plan.filters, counts, vector, target.vector_registers)
        tiling = Tiling("phase", vector, tile.registers, tile.width, 1)
    form, vector = PhaseForm(work, tiling), tiling.vector
    rows = depth.useful_taps * height.useful_taps
    steps = row_cycles(form) * rows * work.plan.in_channels * _PHASE_OVERHEAD
    size = math.prod(work.plan.kernel_shape) * 4
    unit = pace(target, vector, 4)
    return of_widest(target, vector, 4) * max(steps, waiting(unit) * stream(size))


def stream(size: int) -> float:
    """Cycles to bring so many bytes of weights to a core."""
    return size / (NEAR_BYTES if size <= _SHARED_CACHE else _FAR_BYTES)


def vector_lanes(work: Workload, target: CpuTarget) -> int:
    """Lanes of a register: fewer than the target's where filters are few."""
    vector = max(1, target.vector_bits // 32)
    while vector > 4 and vector // 2 >= work.plan.filters:
        vector //= 2
    return vector
