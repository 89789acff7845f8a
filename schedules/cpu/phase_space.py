"""What tuning may change in the phase form.

Fixed in a variant: folding, coupled channels, lanes and registers (the layout of the weights),
stationary tiles.
Free: voxels of a register tile, rows of a task tile, its share of the channels, whether rows are
copied that need not be, which loop of a row is outside, whether outputs that are larger than the
second-level cache leave past the caches, and whether the rows of stationary tiles
take the rule's stretches of weights or all at once.

Not offered: register tiles with more sums than registers (they spill), and task tiles whose
scratch is larger than 16 MiB.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.finish import needs_line
from tvmconv.compute.frame import positions
from tvmconv.compute.phase import PhaseForm, computed, needs_packing
from tvmconv.compute.tiling import cut
from tvmconv.schedules.cpu import phase, stream
from tvmconv.schedules.cpu.coupled import coupled_tiling
from tvmconv.schedules.cpu.phase import can_ask
from tvmconv.schedules.cpu.phase_cycles import row_cycles
from tvmconv.schedules.cpu.phase_stationary import with_stretch
from tvmconv.schedules.cpu.traits import couples
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_SCRATCH = 16 << 20
_MOST_REGISTERS = 6
#: Cycles to begin and end a register tile, and to copy a register of input.
_TILE, _COPY = 12.0, 1.5
#: Ranges of tiles that a core gets: stationary tiles copy once for each.
_RANGES = 8


def variants(work: Workload, target: CpuTarget) -> list[Variant]:
    """All structures of the phase form; none where the rule does not take the workload."""
    found = _variants(work, target, phase.decide(work, target))
    if couples(target):
        found += _variants(work, target, coupled_tiling(work, target))
    return found


def _variants(work: Workload, target: CpuTarget, default: Tiling | None) -> list[Variant]:
    """Those that are coupled or not, as the default is."""
    if default is None:
        return []
    found = []
    for fold in sorted({default.fold, False}, reverse=True):
        inner = computed(work, dataclasses.replace(default, fold=fold))
        for vector in _vectors(default.vector):
            for registers in range(1, _MOST_REGISTERS + 1):
                if registers > -(-inner.plan.filters // vector):
                    break
                for stationary in (False,) if work.mixed_axes else (False, True):
                    # What is not named here has no choice in it, and is as the rule says.
                    base = dataclasses.replace(
                        default, vector=vector, registers=registers, width=1, rows=1, splits=1,
                        fold=fold, pack=True, stationary=stationary,
                    )  # fmt: skip
                    base = with_stretch(base, work, target)
                    made = _variant(work, inner, target, base, default)
                    if made is not None:
                        found.append(made)
    return found


def _vectors(default: int) -> list[int]:
    return [default, default // 2] if default >= 8 else [default]


def _variant(
    work: Workload, inner: Workload, target: CpuTarget, base: Tiling, default: Tiling
) -> Variant | None:
    axes = inner.plan.axes
    counts = [one.count for one in axes[2].phases if one.taps and one.count]
    most = (target.vector_registers - base.registers - 1) // base.registers
    most = min(most, max(counts, default=1))
    if most < 1:
        return None
    # Widths that cut the rows alike are one candidate: the smallest of them, or the default's.
    widths = [*range(most, 0, -1), *([default.width] if default.width <= most else [])]
    cuts = {_cuts(counts, w): w for w in widths}
    choices = [("width", tuple(sorted(cuts.values())))]
    if not base.stationary:
        choices.append(("rows", steps(positions(axes[1]), default.rows)))
    blocks, rest = divmod(inner.plan.filters, base.registers * base.vector)
    if not rest and not work.mixed_axes and (base.stationary or not needs_line(work)):
        choices.append(("splits", tuple(n for n in range(1, blocks + 1) if blocks % n == 0)))
    elif blocks and rest and base.stretch and not needs_line(work):
        choices.append(("splits", (1, blocks + 1)))
    if not needs_packing(inner):
        choices.append(("pack", (0, 1)))
    if can_ask(work, dataclasses.replace(base, pack=False, fetch=True)):
        choices.append(("fetch", (0, 1)))
    if blocks + (rest > 0) > 1:
        choices.append(("channels_outer", (0, 1)))
    if base.stretch:
        choices.append(("stretch", (0, base.stretch)))
    if stream.offered(work, target, base):
        choices.append(("stream", (0, 1)))
    return Variant(
        base, tuple(choices), partial(_fits, work), partial(_cycles, work, inner, target),
        alike=partial(_alike, counts, cuts),
    )  # fmt: skip


def _cuts(counts: list[int], width: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The tiles of the rows of all phases."""
    return tuple(tuple(cut(count, width)) for count in counts)


def _alike(
    counts: list[int], widths: dict[tuple[tuple[tuple[int, int], ...], ...], int], tiling: Tiling
) -> Tiling:
    # How far ahead tiles ask depends on the width itself.
    if tiling.width < 1 or tiling.fetch:
        return tiling
    width = widths.get(_cuts(counts, tiling.width), tiling.width)
    return dataclasses.replace(tiling, width=width)


def _fits(work: Workload, tiling: Tiling) -> bool:
    form = PhaseForm(work, tiling)
    # Only stretches are taken by blocks that are not equal.
    if form.is_uneven and not form.stretch:
        return False
    # Rows that are copied are not asked for.
    if tiling.fetch and not form.asks:
        return False
    size = 8 if work.accumulate_dtype == "float64" else 4
    return (math.prod(form.rows_shape) + math.prod(form.line_shape)) * size <= _MOST_SCRATCH


def _cycles(work: Workload, inner: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample: register tiles, copies, and cores that wait for the last one."""
    form = PhaseForm(work, tiling)
    depth, height, width = inner.plan.axes
    channels = inner.plan.in_channels
    taps = depth.useful_taps * height.useful_taps
    tiles = 0.0
    for group in form.groups:
        registers = group.lanes // tiling.vector
        for one in width.phases:
            for parts, w in cut(one.count, form.width(group)):
                tiles += parts * group.blocks * (_TILE + w * registers)
    cycles = row_cycles(form) * taps * channels + tiles * depth.out * height.out
    count = form.tiles.count
    if form.packs:
        copies = min(count, _RANGES * target.cores) if tiling.stationary else count
        cycles += _COPY * copies * math.prod(form.rows_shape) / tiling.vector
    tasks = count * max(1, inner.plan.batch)
    return cycles * (-(-tasks // target.cores) * target.cores / tasks + 0.1 * target.cores / tasks)
