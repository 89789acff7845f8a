"""The pair rule: kernel = stride on processors whose adders stand apart from their multipliers.

Strategy
  1. Register tiles of at most 16 voxels (one for each lane, since what belongs to a voxel is made
     for a register of them) x one register of filters; as many voxels as leave few over.
  2. Where the second-level cache holds the weights, some register tiles are a task, and each takes
     all panels. Else all voxels of a task take the panels that half of that cache holds before the
     next ones.
  3. Where voxels are too few for the cores, tasks share them, each with panels of its own.

Their sums round otherwise than the direct forms': NaN and infinities stay in the outputs of their
voxel or filter, but an infinity may become NaN.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tvmconv.compute.pairs import HEAD, PairForm, serves
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.errors import ConfigError
from tvmconv.schedules.cpu import direct
from tvmconv.schedules.cpu.pace import adders_apart, pace

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["cycles", "decide", "refusal", "require"]

#: Fewest channels, voxels and filters: below, what is done once for a tile outweighs its products,
#: sums wait for each other, or lanes are padding.
_LEAST_CHANNELS, _LEAST_VOXELS, _LEAST_FILTERS = 24, 8, 16
#: Voxels of a register tile.
_WIDTHS = range(8, 17)
#: Cycles of a register tile beside its products, those of its products beside the units' pace, and
#: cycles to scale a register of inputs. Measured on Zen 4.
_TILE, _PRODUCTS, _SCALE = 60.0, 1.09, 5.0
#: The share of the direct form's time that pairs must not exceed.
_GAIN = 0.97
#: Parts of the second-level cache for weights that all voxels take, and for voxels that wait.
_WEIGHTS, _VOXELS = 0.5, 0.25
#: Task tiles that a core should get, register tiles of one, and fewest panels of one.
_TASKS_A_CORE, _MOST_ROWS, _LEAST_PANELS = 8, 8, 4


def refusal(work: Workload, target: CpuTarget, *, exact: bool = False) -> str | None:
    """Why the rule does not take a workload (with its axes joined); None where it may."""
    if not adders_apart(target):
        return f"{target.cpu} adds with the units that multiply"
    if exact:
        return "the kernel is not finite"
    if not serves(work):
        return "it serves kernel = stride, float32 sums, channels last, and no cropped output"
    voxels = math.prod(axis.size for axis in work.plan.axes)
    small = work.plan.in_channels < _LEAST_CHANNELS or voxels < _LEAST_VOXELS
    if small or work.folded().plan.filters < _LEAST_FILTERS:
        return (
            f"it needs {_LEAST_CHANNELS} input channels, {_LEAST_VOXELS} voxels and "
            f"{_LEAST_FILTERS} filters times strides along the width"
        )
    return None


def require(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling:
    """The tiling of a workload, cheaper or not.

    Raises
    ------
    ConfigError
        The rule does not take it.
    """
    reason = refusal(work, target, exact=exact)
    if reason is not None:
        raise ConfigError(f"algorithm='pairs' does not serve this layer: {reason}")
    return _tiling(work, target)


def decide(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling | None:
    """The tiling of a workload where it is cheaper than the direct forms; else None."""
    if refusal(work, target, exact=exact) is not None:
        return None
    tiling = _tiling(work, target)
    if cycles(work, target, tiling) > _GAIN * direct.cycles(work, target):
        return None
    return tiling


def _tiling(work: Workload, target: CpuTarget) -> Tiling:
    voxels = math.prod(axis.size for axis in work.plan.axes)
    base = Tiling("pairs", target.vector_bits // 32, 1, 1, 1)

    def cost(width: int) -> float:
        return sum(tiles * _tile_cycles(work, target, w) for tiles, w in cut(voxels, width))

    width = min((w for w in _WIDTHS if w <= voxels), key=lambda w: (cost(w), -w))
    base = dataclasses.replace(base, width=width)
    form = PairForm(work, base)
    channels = work.plan.in_channels
    panel_bytes = (channels + HEAD) * base.vector * 4
    row_bytes = math.prod(form.rows_shape) * 4
    tiles = sum(count for count, _ in form.runs)
    tasks = _TASKS_A_CORE * target.cores
    rows = max(1, min(_MOST_ROWS, tiles * max(1, work.plan.batch) // tasks))
    stretch = form.panels
    if form.panels * panel_bytes > _WEIGHTS * target.l2_bytes:
        stretch = max(1, int(_WEIGHTS * target.l2_bytes) // panel_bytes)
        rows = max(1, min(tiles, int(_VOXELS * target.l2_bytes) // row_bytes))
    chunks = -(-tiles // rows)
    # Equal chunks.
    rows = -(-tiles // chunks)
    splits = max(
        1, min(-(-tasks // (chunks * max(1, work.plan.batch))), form.panels // _LEAST_PANELS)
    )
    share = -(-form.panels // splits)
    return dataclasses.replace(
        base, rows=rows, splits=-(-form.panels // share), stretch=min(stretch, share)
    )


def _tile_cycles(work: Workload, target: CpuTarget, width: int) -> float:
    """Cycles of a register tile, in the unit of `schedules.cpu.pace`."""
    unit = pace(target, target.vector_bits // 32, 4)
    return width * work.plan.in_channels / 3 * _PRODUCTS + unit * _TILE


def cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample on one core."""
    form = PairForm(work, tiling)
    unit = pace(target, tiling.vector, 4)
    registers = -(-work.plan.in_channels // tiling.vector)
    found = 0.0
    for tiles, width in form.runs:
        scaled = tiling.splits * unit * _SCALE * (registers + 1) * width
        found += tiles * (form.panels * _tile_cycles(work, target, width) + scaled)
    return found
