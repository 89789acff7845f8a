"""The pair rule: kernel = stride on processors whose adders stand apart from their multipliers.

Strategy
  1. Register tiles of at most 16 voxels (one for each lane, since what belongs to a voxel is made
     for a register of them) x one register of filters; as many voxels as leave few over.
  2. Where the second-level cache holds the weights, some register tiles are a task, and each takes
     all panels. Else all voxels of a task take the panels that half of that cache holds before the
     next ones.
  3. Channels first: register tiles of one register of voxels x the filters whose taps along the
     width are at most 16. The number of filters depends on the layer alone, as do packed weights.
  4. Channels last, a task asks for the inputs of the next one, where they come from memory.
  5. Where voxels are too few for the cores, tasks share them, each with panels of its own.

Their sums round otherwise than the direct forms': NaN and infinities stay in the outputs of their
voxel or filter, but an infinity may become NaN.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tvmconv.compute.pair_voxels import PairVoxelForm, pair_form
from tvmconv.compute.pairs import HEAD, serves
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.errors import ConfigError
from tvmconv.schedules.cpu import direct
from tvmconv.schedules.cpu.pace import pace
from tvmconv.schedules.cpu.traits import adders_apart

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["cycles", "decide", "refusal", "require"]

#: Fewest channels, voxels and filters: below, what is done once for a tile outweighs its products,
#: sums wait for each other, or lanes are padding.
_LEAST_CHANNELS, _LEAST_VOXELS, _LEAST_FILTERS = 24, 8, 16
#: The same of channels first, whose lanes are voxels: filters times taps along the width.
_LEAST_COLUMNS = 8
#: Voxels of a register tile; channels first: filters times taps.
_WIDTHS = range(8, 17)
#: Cycles of a register tile beside its products, those of its products beside the units' pace, and
#: cycles to scale a register of inputs, and one from beyond the second-level cache, though it was
#: asked for. Measured on Zen 4 (186 channels to 20 filters, kernel 1, 39^3: 1.17 times the direct
#: form's time).
_TILE, _PRODUCTS, _SCALE, _SCALE_FAR = 60.0, 1.09, 5.0, 12.0
#: Channels first: those beside the products of a register tile, to copy and scale a register of
#: inputs, each from another place of memory, and to store one of outputs in pieces of rows.
_TILE_FIRST, _SCALE_FIRST, _PIECE = 100.0, 12.0, 2.0
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
        return "it serves kernel = stride, float32 sums, and no cropped output"
    voxels = math.prod(axis.size for axis in work.plan.axes)
    if work.plan.channels_first:
        return _refusal_first(work, target, voxels)
    small = work.plan.in_channels < _LEAST_CHANNELS or voxels < _LEAST_VOXELS
    if small or work.folded().plan.filters < _LEAST_FILTERS:
        return (
            f"it needs {_LEAST_CHANNELS} input channels, {_LEAST_VOXELS} voxels and "
            f"{_LEAST_FILTERS} filters times strides along the width"
        )
    return None


def _refusal_first(work: Workload, target: CpuTarget, voxels: int) -> str | None:
    """The same with channels first."""
    vector, stride = target.vector_bits // 32, work.plan.axes[2].stride
    small = work.plan.in_channels < _LEAST_CHANNELS or voxels < vector
    if small or work.plan.filters * stride < _LEAST_COLUMNS or stride > _WIDTHS[-1]:
        return (
            f"channels first it needs {_LEAST_CHANNELS} input channels, {vector} voxels, "
            f"{_LEAST_COLUMNS} filters times strides along the width, and at most {_WIDTHS[-1]} of "
            "these strides"
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
    base = Tiling("pairs", target.vector_bits // 32, 1, 1, 1)
    if work.plan.channels_first:
        registers = min(work.plan.filters, max(1, _WIDTHS[-1] // work.plan.axes[2].stride))
        base = dataclasses.replace(base, registers=registers)
    else:
        base = dataclasses.replace(base, width=_width(work, target))
    form = pair_form(work, base)
    channels = work.plan.in_channels
    panel_bytes = (channels + HEAD) * form.panels_shape[3] * 4
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
    splits = -(-form.panels // share)
    # Tasks that share their voxels would all ask for them.
    fetch = not work.plan.channels_first and splits == 1 and _far(work, target)
    return dataclasses.replace(
        base, rows=rows, splits=splits, stretch=min(stretch, share), fetch=fetch
    )


def _far(work: Workload, target: CpuTarget) -> bool:
    """Whether a sample's inputs come from beyond the second-level cache."""
    return math.prod(work.plan.input_shape[1:]) * 4 > target.l2_bytes


def _width(work: Workload, target: CpuTarget) -> int:
    """Voxels of a register tile, channels last."""
    voxels = math.prod(axis.size for axis in work.plan.axes)

    def cost(width: int) -> float:
        return sum(tiles * _tile_cycles(work, target, w) for tiles, w in cut(voxels, width))

    return min((w for w in _WIDTHS if w <= voxels), key=lambda w: (cost(w), -w))


def _tile_cycles(work: Workload, target: CpuTarget, width: int, beside: float = _TILE) -> float:
    """Cycles of a register tile, in the unit of `schedules.cpu.pace`."""
    unit = pace(target, target.vector_bits // 32, 4)
    return width * work.plan.in_channels / 3 * _PRODUCTS + unit * beside


def cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample on one core."""
    form = pair_form(work, tiling)
    unit = pace(target, tiling.vector, 4)
    if isinstance(form, PairVoxelForm):
        return _cycles_first(form, target, unit)
    registers = -(-work.plan.in_channels // tiling.vector)
    scale = _SCALE_FAR if _far(work, target) else _SCALE
    found = 0.0
    for tiles, width in form.runs:
        scaled = tiling.splits * unit * scale * (registers + 1) * width
        found += tiles * (form.panels * _tile_cycles(work, target, width) + scaled)
    return found


def _cycles_first(form: PairVoxelForm, target: CpuTarget, unit: float) -> float:
    """The same with channels first."""
    plan, ((tiles, _),) = form.work.plan, form.runs
    stride, taps = plan.axes[2].stride, form.panels_shape[0]
    found = form.tiling.splits * unit * _SCALE_FIRST * plan.in_channels
    for blocks, filters in form.blocks:
        stores = 0 if form.is_whole else filters * (form.pieces + stride)
        beside = _TILE_FIRST + _PIECE * stores
        found += taps * blocks * _tile_cycles(form.work, target, filters * stride, beside)
    return tiles * found
