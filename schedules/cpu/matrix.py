"""The matrix rule: kernel = stride with channels first, where registers have few lanes.

Strategy
  1. Register tiles of two registers of voxels x the filters whose taps along the width are at most
     six: twelve sums, which leave registers for the inputs and a weight.
  2. Some register tiles are a task: as many as a part of the first-level cache holds beside the
     weights of a panel, but enough to use each panel some times, which comes from beyond.
  3. Leave to the phase form what was slower than with it: few channels or filters, sums too few
     to hide the latency, tasks too few for the cores, and rows that are computed twice in good
     part: those that neither registers nor pieces of them divide.

The limits were measured on Zen 3, float32, against the phase form; no model compares the two.
Nine layers of half width took 0.47 to 0.96 of its time.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tvmconv.compute import finish
from tvmconv.compute.matrix import MOST_TWICE, MatrixForm, serves
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu.traits import multiplies_voxels

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["base", "cycles", "decide"]

#: Registers of voxels of a register tile, and filters times taps along the width.
_WIDTH, _COLUMNS = 2, 6
#: Part of the first-level cache for inputs; fewest and most register tiles of a task. Two took up
#: to 1.1 times the time of four, with 48 to 128 input channels; four and eight differ by 0.07.
_INPUTS, _LEAST_ROWS, _MOST_ROWS = 0.6, 4, 8
#: Fewest filters, those of a register of the phase form, and fewest channels: with 8 for 24 filters
#: stores are the time, and took 1.4 times that of the phase form, with 16 for 16 it is 0.93.
_LEAST_FILTERS, _LEAST_CHANNELS = 8, 16
#: Fewest filters times taps of a register tile: with four, 32 to 16 filters, kernel 4, took 0.98 to
#: 1.10 of the phase form's time.
_LEAST_COLUMNS = 5
#: Fewest tasks of a core.
_TASKS = 4
#: Cycles of a register tile beside its products, and to copy a register of inputs.
_TILE, _COPY = 40.0, 3.0


def base(work: Workload, target: CpuTarget) -> Tiling | None:
    """The register tile of a workload; None where the form does not serve it."""
    stride = work.plan.axes[2].stride
    registers = min(work.plan.filters, _COLUMNS // stride)
    if registers < 1 or not multiplies_voxels(target) or finish.is_long(work):
        return None
    tiling = Tiling("matrix", target.vector_bits // 32, registers, _WIDTH, 1)
    return tiling if work.accumulate_dtype == "float32" and serves(work, tiling) else None


def decide(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling | None:
    """The tiling of a workload within the limits above; else None."""
    del exact  # Every product is one of the definition's.
    tiling = base(work, target)
    if tiling is None:
        return None
    form = MatrixForm(work, tiling)
    twice = form.vectors[0] * tiling.vector / form.row
    few = work.plan.filters < _LEAST_FILTERS or work.plan.in_channels < _LEAST_CHANNELS
    if few or twice > MOST_TWICE or form.panels_shape[3] < _LEAST_COLUMNS:
        return None
    held = int(_INPUTS * target.l1_bytes) // (math.prod(form.rows_shape[1:]) * 4)
    rows = max(_LEAST_ROWS, min(_MOST_ROWS, held))
    tasks = form.tiles * max(1, work.plan.batch) // rows
    if tasks < _TASKS * target.cores:
        return None
    # Equal tasks.
    rows = -(-form.tiles // -(-form.tiles // rows))
    return dataclasses.replace(tiling, rows=rows)


def cycles(work: Workload, tiling: Tiling) -> float:
    """Cycles of a sample on one core, to tell tilings of this form apart."""
    form, channels = MatrixForm(work, tiling), work.plan.in_channels
    stride, taps = work.plan.axes[2].stride, form.panels_shape[1]
    found = _COPY * channels * tiling.width
    for blocks, filters in form.blocks:
        steps = max(filters * stride * tiling.width / 2, 4.0) * channels
        found += taps * blocks * (steps + _TILE)
    return form.tiles * found
