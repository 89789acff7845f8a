"""What the Toom-Cook form costs, by the model of the core.

Its constants were fitted where two products begin in a cycle. On Zen 4, where one does (`pace`), 38
tilings of 12 layers took what it says within a fifth, beside the direct form of each layer; the
standard deviation was 7 %.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import TYPE_CHECKING

from tvmconv.compute.frame import LINE_BYTES
from tvmconv.compute.tiling import cut
from tvmconv.schedules.cpu import direct
from tvmconv.schedules.cpu.pace import of_widest, pace, waiting
from tvmconv.schedules.cpu.phase import tile_cost
from tvmconv.schedules.cpu.shares import MOST_TASKS, uneven
from tvmconv.schedules.cpu.toom_cook_steps import (
    back_steps,
    pair_steps,
    read_share,
    sum_steps,
    summed_share,
)
from tvmconv.schedules.cpu.traits import brings_late, late_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tvmconv.compute.lanes import Group
    from tvmconv.compute.points import Combination
    from tvmconv.compute.toom_cook import ToomCookForm
    from tvmconv.compute.transforms import AxisTiles
    from tvmconv.targets import CpuTarget

__all__ = ["cycles", "is_short"]

#: Cycles a register of channels, by measurement: an input copied, a load, addition or store of a
#: transform, a product read.
_COPY, _STEP, _PRODUCT = 5.0, 0.36, 1.4
#: The latter of products that are so many times the first-level cache at most.
_FEW_PRODUCTS, _NEAR_PRODUCT = 2.0, 1.2
#: The same for an output stored, and more where it may lie over the end.
_STORE, _BRANCH = 1.0, 5.0
#: The same of registers of half a line: three loads and two stores a cycle, not two and one. Where
#: they are twice as fast as whole ones (`pace.of_widest`) that is all of it.
_SHORT_BYTES, _SHORT = 32, 0.6
#: Share of a stream's cycles that does not hide behind the register tiles.
_HIDDEN = 0.2
#: The same for the weights, if they are more bytes than any core's own cache holds.
_SHOWN, _MANY_WEIGHTS = 0.35, 4 << 20
#: Weights of at most this share of the second-level cache, which with the scratch take more than
#: that, come from another core's cache each time, and nothing hides it; by measurement.
_HELD_WEIGHTS, _TOGETHER, _BARE = 0.3, 0.75, 1.0
#: Where the cache that cores share brings lines late (`traits.brings_late`): what is not hidden of
#: the reading of sums of inputs, more with each doubling of scratch, and still more beyond so many
#: second-level caches. Weights hide less from `traits.late_weights` on, until twice as many cost as
#: much as those from memory. By measurement on Zen 3: 128 to 64 filters, kernel 4, on
#: 16x16x16 took 1.2 times as long with 1.7 MB of scratch and 17 MB of weights as with 0.9 and 9, by
#: the model without these 0.9; 240 to 240 on 4x32x32, of 88 MB, on two cores twice as long with 15
#: MB as with 4, without 0.9; 64 to 32, kernel 3, on 24x32x64 1.03 times with 1.0 MB as with 0.7.
_FEW_LATE, _LATE_SUMS, _FULL = 0.1, 0.5, 2.0
#: Cycles to begin and end a register tile, besides its stores.
_TILE = 12.0
#: The same for pairs of channels, and a line of sums of inputs, which its first register brings
#: from the second-level cache; their steps beside the pace of the units. By measurement on Zen 4.
_PAIRS_TILE, _LINE, _PAIRS, _PAIRS_WIDTH = 50.0, 2.0, 1.03, 6
#: Cycles to begin the scale of a tile, for a register of sizes, for what the pairs of a sum of
#: inputs add too much, and for a load of these.
_SCALE, _SIZE, _EXCESS, _PAIR = 60.0, 1.5, 6.0, 1.6
#: Cycles of a load beside the products, where these are one a cycle; by measurement.
_LOAD = 0.12
#: Cycles to add up the lanes of one register.
_TOTAL = 3.5
#: Share of the second-level cache beyond which scratch is moved more slowly, beside weights and
#: outputs, and by how much with each doubling; by measurement, of registers that hold a line and
#: outputs that do not wait in scratch. The others only lose where it is almost full.
_NEAR, _SPREAD = 0.2, 0.2
#: The share beyond which sums of inputs have left it when they are read.
_ROOM = 0.7
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


def cycles(form: ToomCookForm, target: CpuTarget) -> float:
    """Cycles of a sample on one core, by the model; uneven shares of the cores count as work."""
    work, tiling = form.work, form.tiling
    depth, height, width = form.axes
    vectors = form.channels // tiling.vector
    blocks = depth.blocks * height.blocks * width.blocks
    tiles = depth.tiles * height.tiles * width.tiles
    moved = _COPY * blocks * math.prod(form.inputs_shape[:3]) * vectors
    around = math.prod(1 + axis.halo / axis.block for axis in form.axes)
    short = form.axes if form.narrows else form.axes[:2]
    summed = tiles * around * math.prod(map(summed_share, short))
    moved += _STEP * sum_steps(form) * summed * vectors
    if tiling.paired:
        moved += _pairs_moved(form, blocks, tiles)
    unit = pace(target, tiling.vector, 4)
    steps = reads = 0.0
    partial = any(axis.axis.out % axis.span for axis in form.axes)
    store = _STORE + (_BRANCH if partial else 0.0)
    sizes = [
        (1, 1) if group.dots else (group.blocks, group.lanes / tiling.vector)
        for group in form.groups
    ]
    products = (form.offsets[2] - form.offsets[1]) * 4
    few = products <= _FEW_PRODUCTS * target.l1_bytes and not is_short(tiling.vector)
    product = _NEAR_PRODUCT if few else _PRODUCT
    row = cut(width.tiles, tiling.width)
    if width.blocks > 1:
        row = [(-(-width.tiles // tiling.width), tiling.width)]
    tiles_of: dict[tuple[int, int], float] = {}
    for one in form.combinations:
        phases = math.prod(len(group.places) for group in one.classes)
        rows = phases * depth.tiles * height.tiles
        needed = math.prod(
            axis.needed_share(group)
            for axis, group in zip((depth, height), one.classes[:2], strict=True)
        )
        outputs = math.prod(group.scheme.outputs for group in one.classes)
        back = one.points * read_share(form, one) * product
        back += outputs * store + _STEP * back_steps(one)
        for lanes, (count, registers) in zip(form.groups, sizes, strict=True):
            apart = lanes in form.passes
            for parts, w, share in _register_tiles(form, one, row):
                made = rows * needed * one.points * count * parts * share
                if (lanes.first, w) not in tiles_of:
                    tile = _register_tile(form, lanes, w, registers, unit)
                    tiles_of[lanes.first, w] = tile
                steps += made * tiles_of[lanes.first, w]
            moved += rows * width.tiles * count * math.ceil(registers) * back
            if apart:
                reads += rows * width.tiles * one.points * count * form.channels * 4
    scratch = form.offsets[-1] * 4 / target.l2_bytes
    narrow = of_widest(target, tiling.vector, 4)
    if is_short(tiling.vector) and narrow == 1:
        moved *= _SHORT
    if is_short(tiling.vector) or form.waits:
        moved *= 1.1 + 0.15 * math.log2(scratch / _ROOM) if scratch > _ROOM else 1.0
    else:
        moved *= 1 + _SPREAD * max(0.0, math.log2(scratch / _NEAR))
    moved *= unit
    weights = form.packed_size * 4
    if scratch > _ROOM:
        shown = _HIDDEN
        if brings_late(target):
            shown += _FEW_LATE * math.log2(scratch / _ROOM)
            shown += _LATE_SUMS * math.log2(max(1.0, scratch / _FULL))
        moved += waiting(unit) * shown * reads / direct.NEAR_BYTES
    streamed = waiting(unit) * direct.stream(weights) * blocks
    shown = _HIDDEN if weights <= _MANY_WEIGHTS else _SHOWN
    late = late_weights(target)
    if late < weights <= 2 * late:
        shown += (1 - _SHOWN) * math.log2(weights / late)
    share = weights / target.l2_bytes
    if target.cores > 1 and share <= _HELD_WEIGHTS and scratch + share > _TOGETHER:
        shown = _BARE
    total = max(steps + shown * streamed, streamed) + moved
    total *= narrow
    tasks = blocks * max(1, work.plan.batch)
    return total * (_uneven(form, target) + _UNEVEN * target.cores / tasks)


def _uneven(form: ToomCookForm, target: CpuTarget) -> float:
    """How many times as long the cores take as if all had as much to do."""
    if target.cores == 1:
        return 1.0
    blocks, batch = [axis.blocks for axis in form.axes], max(1, form.work.plan.batch)
    tasks = math.prod(blocks) * batch
    # Blocks at the ends have fewer tiles: another core waits for a whole one.
    whole = math.prod(axis.block * axis.blocks / axis.tiles for axis in form.axes)
    least = -(-tasks // target.cores) * target.cores / tasks + (whole - 1) * target.cores / tasks
    # The products of pairs are most of the time, so that blocks at the ends are as short as theirs.
    counted = form.tiling.paired and not form.waits and tasks <= MOST_TASKS
    if not counted:
        return least
    axes = [_blocks_costs(axis) for axis in form.axes]
    costs = tuple(map(math.prod, itertools.product(*axes)))
    return max(least, uneven(costs * batch, target.cores))


@cache
def _blocks_costs(axis: AxisTiles) -> list[float]:
    """Tiles of each block along an axis; the last one counts as the products that it needs."""
    needing = [n for group in axis.classes for phase in axis.needing(group) for n in phase]
    last = needing.count(axis.tiles) / len(needing)
    *others, rest = [axis.block] * axis.blocks
    rest -= axis.block * axis.blocks - axis.tiles
    return [*map(float, others), rest - 1 + last]


def _register_tiles(
    form: ToomCookForm, one: Combination, row: list[tuple[int, int]]
) -> Iterator[tuple[int, int, float]]:
    """Register tiles of a row: how many, their tiles, and the share of the points that have them.

    The last one has a tile less where the last tile of the row does not need a point.
    """
    width = form.axes[2]
    share = width.needed_share(one.classes[2]) * width.tiles - (width.tiles - 1)
    if not form.narrows or share == 1:
        yield from ((parts, tiles, 1.0) for parts, tiles in row)
        return
    *others, (parts, tiles) = row
    yield from ((parts, tiles, 1.0) for parts, tiles in others)
    yield parts - 1, tiles, 1.0
    yield 1, tiles, share
    if tiles > 1:
        yield 1, tiles - 1, 1 - share


def _register_tile(
    form: ToomCookForm, lanes: Group, width: int, registers: float, unit: float
) -> float:
    """Cycles of a register tile."""
    if lanes.dots:
        apart = lanes in form.passes
        # Beside the register tile of other filters loads stand behind products.
        step = width * (form.channels // form.tiling.vector) * (lanes.blocks + apart) / 2
        ends = _TILE * apart + width * _TOTAL * lanes.blocks
    elif form.tiling.paired:
        step, ends = _pairs_tile(form, width, registers)
    else:
        step = tile_cost(width, registers, unit) + (1 - unit) * _LOAD * (width + registers)
        step *= form.work.plan.in_channels
        ends = _TILE + width * registers / 2
    return step + unit * ends


def _pairs_tile(form: ToomCookForm, width: int, registers: float) -> tuple[float, float]:
    """The steps of a register tile of pairs, and its beginning and end."""
    assert form.pairing is not None
    pairs = sum(count for _, _, count, _ in form.pairing.pairs)
    products = form.work.plan.in_channels - pairs
    # Fewer tiles wait for their sums.
    step = _PAIRS * max(products, 2 * pairs) * max(width, _PAIRS_WIDTH) * registers / 2
    lines = width * form.channels * 4 / LINE_BYTES
    return step, registers * (_PAIRS_TILE + width) + _LINE * lines


def _pairs_moved(form: ToomCookForm, blocks: int, tiles: int) -> float:
    """Cycles to scale the sums of inputs, and for what their pairs add too much."""
    assert form.pairing is not None
    vectors = form.channels // form.tiling.vector
    transforms, inputs, sums = pair_steps(form)
    runs = (count for _, _, count, _ in form.pairing.pairs)
    loads = 2 * sum(-(-count // form.tiling.vector) for count in runs)
    found = _SIZE * blocks * math.prod(form.inputs_shape[:3]) * (vectors + 1)
    found += tiles * (_SCALE * transforms + _SIZE * inputs)
    return found + tiles * sums * (_EXCESS + _PAIR * loads)


def is_short(vector: int) -> bool:
    """Whether registers hold half a line or less."""
    return vector * 4 <= _SHORT_BYTES
