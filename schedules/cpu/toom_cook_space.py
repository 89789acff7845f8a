"""What tuning may change in the Toom-Cook form.

Fixed in a variant: the scheme of each axis, the registers and the filters outside of them (the
layout of the weights), and the tiles of a register tile. Free: the tiles of a task along each axis,
and over how many axes the transformed input is shared. With tiles as lanes: the channels that a
task takes at once, and its tiles of depth and height. With channels as lanes see
`toom_cook_dot_space`.

Not offered: what the rule does not serve, scratch above 16 MiB, packed weights above eight
kernels; layers with fewer than 8 channels, where lanes of the form would be padding.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.finish import needs_line
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm
from tvmconv.compute.transforms import AxisTiles
from tvmconv.schedules.cpu import (
    stream,
    toom_cook,
    toom_cook_cycles,
    toom_cook_dot,
    toom_cook_dot_space,
    toom_cook_pair,
    toom_cook_voxel,
)
from tvmconv.schedules.cpu.direct import vector_lanes
from tvmconv.schedules.cpu.toom_cook_waiting import leaving
from tvmconv.schedules.cpu.traits import compacts
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_REGISTERS = 4
_WIDTHS = 3
_LEAST_CHANNELS = 8


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """All structures of the form; none where it does not serve the workload."""
    if toom_cook.refusal(work) is not None:
        return []
    channels = toom_cook_dot_space.variants(work, target)
    thin = min(work.plan.in_channels, work.plan.filters) < _LEAST_CHANNELS
    if thin and default.form != "toom-cook":
        return channels
    axes = work.plan.axes
    vector = vector_lanes(work, target)
    found = channels + (_across(work, target, default) if default.across else [])
    choices = toom_cook.outputs(work, vector)
    some = 0 if toom_cook_dot.is_one(work, default) else default.dots
    for outputs, dots in itertools.product(choices, sorted({0, some})):
        counts = [AxisTiles(a, m, 1, True).tiles for a, m in zip(axes, outputs, strict=True)]
        for registers in range(1, _MOST_REGISTERS + 1):
            if registers > -(-(work.plan.filters - dots) // vector):
                break
            most = min(counts[2], (target.vector_registers - registers - 1) // registers)
            # Of widths that cut a row alike the smallest counts, or the default's.
            widths = [*range(most, 0, -1), *([default.width] if default.width <= most else [])]
            cuts = {tuple(cut(counts[2], w)): w for w in widths}
            few = sorted(cuts.values(), reverse=True)[:_WIDTHS]
            for width in sorted({*few, default.width} & {*cuts.values()}, reverse=True):
                base = Tiling(
                    "toom-cook", vector, registers, width, 1,
                    outputs=outputs, dots=dots,
                    fetch=toom_cook.far_inputs(work, target),
                    masked=toom_cook.masks(work, target),
                    stretch=leaving(work, target),
                    compact=compacts(target),
                )  # fmt: skip
                found.append(_variant(work, target, counts, base))
        widths = [] if dots else toom_cook_pair.pair_widths(work, target, outputs, counts[2])
        most = min(_MOST_REGISTERS, -(-work.plan.filters // vector))
        for registers, width in itertools.product(range(1, most + 1), _cuts(counts[2], widths)):
            base = Tiling(
                "toom-cook", vector, registers, width, 1,
                outputs=outputs, fetch=toom_cook.far_inputs(work, target), paired=True,
                masked=toom_cook.masks(work, target),
                stretch=leaving(work, target),
                compact=compacts(target),
            )  # fmt: skip
            found.append(_variant(work, target, counts, base))
    return found


def _cuts(tiles: int, widths: list[int]) -> list[int]:
    """The smallest of the widths that cut a row alike: of the longest register tiles."""
    cuts = {tuple(cut(tiles, width)): width for width in reversed(widths)}
    return sorted(cuts.values(), reverse=True)[:_WIDTHS]


def _across(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """Tiles as lanes: the default's register tile, and others of its length and schemes."""
    depth, height = (
        AxisTiles(axis, m, 1, True)
        for axis, m in zip(work.plan.axes[:2], default.outputs[:2], strict=True)
    )
    stretches = {*toom_cook_voxel.stretches(work), default.stretch}
    choices = (
        ("block.depth", tuple(n for n in steps(depth.tiles) if n <= 4)),
        ("block.height", tuple(n for n in steps(height.tiles) if n <= 8)),
        ("stretch", tuple(sorted(stretches))),
    )
    tiles = toom_cook_voxel.register_tiles(ToomCookVoxelForm(work, default), target)
    return [
        Variant(
            dataclasses.replace(default, registers=filters, width=registers),
            choices,
            lambda tiling: (
                ToomCookVoxelForm(work, tiling).offsets[-1] * 4 <= toom_cook_voxel.MOST_SCRATCH
            ),
            lambda tiling: toom_cook_voxel.cycles(ToomCookVoxelForm(work, tiling), target),
        )
        for filters, registers in tiles
    ]


def _variant(work: Workload, target: CpuTarget, counts: list[int], base: Tiling) -> Variant:
    depth, height, row = counts
    widths = {row}
    if not needs_line(work):
        widths |= {base.width * n for n in (1, 2, 3, 4, 6) if base.width * n < row}
    span = base.outputs[2] * work.plan.axes[2].stride
    widths |= {*toom_cook.part_widths(work, target, row, base.width, span)}
    choices: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("block.depth", tuple(n for n in steps(depth) if n <= 4)),
        ("block.height", tuple(sorted({min(height, -(-height // n)) for n in range(1, 33)}))),
        ("block.width", tuple(sorted(widths))),
        ("shared", (0, 1, 2, 3)),
    )
    if stream.offered(work, target, dataclasses.replace(base, block=(1, 1, row))):
        choices = (*choices, ("stream", (0, 1)))
    return Variant(
        base, choices, partial(_fits, work, counts), partial(_cycles, work, target),
        alike=partial(_alike, work, row, base.width),
    )  # fmt: skip


def _alike(work: Workload, row: int, width: int, tiling: Tiling) -> Tiling:
    """Where a task has whole rows, their tiles alone count; parts of rows may not fill lines."""
    if tiling.stream and not stream.serves(work, tiling):
        tiling = dataclasses.replace(tiling, stream=False)
    if tiling.width < 1 or tiling.block[2] != row or cut(row, tiling.width) != cut(row, width):
        return tiling
    return dataclasses.replace(tiling, width=width)


def _fits(work: Workload, counts: list[int], tiling: Tiling) -> bool:
    smallest = tiling.block[:2] == (1, 1) and tiling.block[2] <= max(tiling.width, 1)
    if math.prod(tiling.block) > toom_cook.MOST_TILES and not smallest:
        return False
    if any(block > count for block, count in zip(tiling.block, counts, strict=True)):
        return False
    return toom_cook.within_limits(ToomCookForm(work, tiling))


def _cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    return toom_cook_cycles.cycles(ToomCookForm(work, tiling), target)
