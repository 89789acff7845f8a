"""The phase rule: register tiles of voxels x channel lanes for every phase.

Strategy
  1. Fold the width taps into the channels where kernel = stride (one matrix product, contiguous
     output rows).
  2. Take the register tile that costs least by a model of the core: two fused multiply-adds and two
     loads a cycle, a latency that needs eight independent sums and a few to spare, the lanes and
     voxels that a tile pads or leaves over, its beginning and end, and, where the output is larger
     than the second-level cache, the lines that it asks of memory at once, or whole lines where
     outputs leave past the caches. Where outputs of channels first leave span by span, whole tiles
     make a span. A shorter last block has as many voxels as its sums need (`PhaseForm.width`).
  3. Cover as many input rows with a task tile as keep its packed rows in half the second-level
     cache, but leave enough tiles for the cores, and make the blocks of rows even.
  4. Where rows are few, split the channel blocks among task tiles. Where the kernel is larger than
     the second-level cache and rows are short, a task tile keeps one phase's weights and walks all
     rows instead. With channels first those rows wait in scratch, which must be small. Its rows
     take those weights stretch by stretch, from the first-level cache, while the next stretch
     comes to the second.
  5. On Zen 3, where kernel = stride and the input is larger than the second-level cache, the first
     tiles that read a row ask for its later voxels (`compute.phase_flow`).

Checked on Zen 5, with AVX2 code, too. Left out: 8 x 16 tiles on 16 registers, a third of the speed.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv.compute.frame import LINE_BYTES
from tvmconv.compute.phase import PhaseForm, border, needs_packing
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.policies import numpy_dtype
from tvmconv.schedules.cpu import phase_stationary
from tvmconv.schedules.cpu.phase_stationary import with_stretch
from tvmconv.schedules.cpu.stream import past
from tvmconv.schedules.cpu.traits import asks

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "LOAD",
    "RegisterTile",
    "can_ask",
    "decide",
    "mean_steps",
    "most_voxels",
    "register_tile",
    "tile_cost",
    "tile_cycles",
    "with_lanes",
]

#: More phases along the width than this are more code than they are worth: the definition takes
#: those.
_MOST_PHASES = 6
_MOST_BORDER = 64
#: Independent sums that hide the latency of a fused multiply-add (4 cycles, 2 a cycle).
_IN_FLIGHT = 8
#: In practice it takes more, since the two units do not share them evenly.
_ENOUGH = 9.5
#: Cycles of a load beside the products, to tell tiles apart: it hides, but takes slots that they
#: could have, and waits now and then.
LOAD = 0.2
#: Registers that a tile had better leave, and its cycles where it does not: the compiler has less
#: choice of what to load ahead.
_SPARE, _FULL = 2, 1.03
#: The same where registers are few and the tile has more voxels than that: LLVM, which loads them
#: ahead, spills in some loops of the function, whatever the width of their own tile.
_WIDE, _FEW, _FULL_WIDE = 4, 16, 1.07
#: Cycles to begin and end a register tile, besides half a cycle for each of its stores.
_TILE = 12.0
#: Lines that a core waits for at once, cycles for each that a tile stores beyond them, and for each
#: run of lines, on outputs in memory.
_LINES, _LINE, _RUN = 20, 7.0, 12.0
#: Task tiles a core should get at least, so that uneven cores finish together: half a tile is lost
#: in the end. More, by lower ones, where the second-level cache holds the weights that each reads.
_TILES_A_CORE, _LIGHT_TILES_A_CORE = 6, 12


@dataclass(frozen=True)
class RegisterTile:
    """``width`` voxels x ``registers`` vectors of channels."""

    registers: int
    width: int


def tile_cost(width: int, registers: float, unit: float = 1.0) -> float:
    """Cycles of one step (one input channel of one tap) of a register tile, by the model.

    See `schedules.cpu.pace` for the ``unit``: below 1 a broadcast input, a load of few bytes, takes
    less of it than one of a register.
    """
    products = width * registers
    loads = unit * width + registers
    return max(products, loads, unit * _IN_FLIGHT) / 2


def tile_cycles(
    width: int, registers: int, steps: float, *,
    far: bool = False, runs: int = 0, register_bytes: int = LINE_BYTES,
) -> float:  # fmt: skip
    """Cycles of a register tile with ``steps`` steps.

    ``far``: its outputs go to memory, ``register_bytes`` of each register, in ``runs`` runs that
    end inside a row.
    """
    products = width * registers
    step = max(tile_cost(width, registers), min(_ENOUGH, 2 * products) / 2)
    cycles = steps * step + _TILE + products / 2
    # Outputs need not begin with a line: a voxel touches one more than it fills.
    if far:
        lines = width * (registers * register_bytes / LINE_BYTES + 1)
        cycles += _LINE * max(0, lines - _LINES) + _RUN * runs
    return cycles


def most_voxels(registers: int, available: int, *, tall: bool = False) -> int:
    """Most voxels of a register tile: besides the sums, the weights of a step and one input.

    ``tall``: or its inputs and one vector of weights, where these are fewer.
    """
    most = (available - registers - 1) // registers
    if tall and (across := (available - 1) // (registers + 1)) < registers:
        most = max(most, across)
    return most


def register_tile(
    filters: int,
    counts: list[int],
    vector: int,
    available: int,
    only: int | None = None,
    *,
    steps: int = 64,
    far: bool = False,
    register_bytes: int = LINE_BYTES,
    load: float = LOAD,
    grain: int = 1,
    line: int = 1,
    tall: bool = False,
) -> RegisterTile:
    """The register tile that makes a row of voxels cheapest.

    Parameters
    ----------
    filters : int
        Channels of a voxel.
    counts : list of int
        Voxels of each phase of a row.
    vector : int
        Lanes of a register.
    available : int
        Vector registers of the core.
    only : int, optional
        So many vectors of channels and no other number.
    steps : int
        Input channels and taps that a tile sums over.
    far : bool
        Whether the outputs go to memory, and not to a cache of the core. Lines of several vectors
        go past the caches, and are not waited for.
    register_bytes : int
        Bytes of a register of outputs.
    load : float
        Cycles of a load beside the products.
    grain : int
        Tiles have a multiple or a part of so many voxels, where there are so many.
    line : int
        All blocks have a multiple of so many vectors of channels, where the filters can be cut so.
    tall : bool
        Whether tiles with fewer voxels than vectors hold their inputs, and one vector of weights
        after the other, instead of the weights and one input.
    """

    def is_full(width: int, registers: int) -> bool:
        return width * registers + registers + 1 > available - _SPARE

    best: tuple[float, int, RegisterTile] | None = None
    if filters % (line * vector):
        line = 1
    far = far and line == 1
    for registers in [only] if only else range(line, 5, line):
        if not only and registers > line and (registers - 1) * vector >= filters:
            break
        most = most_voxels(registers, available, tall=tall)
        if most < 1:
            break
        blocks, rest = divmod(filters, registers * vector)
        sizes = [registers] * blocks + ([-(-rest // vector)] if rest else [])
        for width in range(1, min(most, max(counts, default=1)) + 1):
            if width % grain and grain % width and max(counts, default=1) >= grain:
                continue
            cost = 0.0
            groups = 0
            for count in counts:
                parts = cut(count, width)
                groups += len(parts) * len(set(sizes))
                for tiles, w in parts:
                    for r in sizes:
                        cycles = tile_cycles(
                            w, r, steps, far=far, runs=w if len(sizes) > 1 else 0,
                            register_bytes=register_bytes,
                        )  # fmt: skip
                        cycles += steps * load * (w + r)
                        cost += tiles * cycles * (_FULL if is_full(w, r) else 1.0)
            if available <= _FEW and width > _WIDE and is_full(width, registers):
                cost *= _FULL_WIDE / _FULL
            # Equal costs: less code, then the larger tile; equal tiles: the width that they have.
            largest = max((w for count in counts for _, w in cut(count, width)), default=1)
            key = (round(cost * (1 + 0.005 * groups), 6), -largest * registers)
            if best is None or key < best[:2]:
                best = (*key, RegisterTile(registers, width))
    if best is None:
        return RegisterTile(only or 1, 1)
    return best[2]


def decide(
    work: Workload, target: CpuTarget, *, exact: bool = False, lanes: int = 0
) -> Tiling | None:
    """The default tiling, of so many ``lanes`` if asked for; None for what it does not serve."""
    axis = work.plan.axes[2]
    if (exact and border(work) != (0, 0)) or work.empty or 0 in work.plan.input_shape[1:]:
        return None
    folded = work.folded()
    width_axis = folded.plan.axes[2]
    if width_axis.stride > _MOST_PHASES or sum(border(folded)) > max(_MOST_BORDER, axis.size):
        return None
    size = 8 if work.accumulate_dtype == "float64" else 4
    vector = lanes or max(1, target.vector_bits // (8 * size))
    while not lanes and vector > 4 and vector // 2 >= folded.plan.filters:
        vector //= 2
    counts = [phase.count for phase in width_axis.phases if phase.taps and phase.count]
    far = _is_far(work, target)
    steps = mean_steps(folded)
    output_bytes = numpy_dtype(work.output_dtype).itemsize
    tile = register_tile(
        folded.plan.filters, counts, vector, target.vector_registers, steps=steps, far=far,
        register_bytes=vector * output_bytes,
        grain=PhaseForm(folded, Tiling("phase", vector, 1, 1, 1)).span or 1,
        line=max(1, LINE_BYTES // (vector * output_bytes)) if far and past(work, target) else 1,
    )  # fmt: skip
    fold, pack = folded is not work, needs_packing(folded)
    alone = Tiling("phase", vector, tile.registers, tile.width, 1, 1, fold, pack, stationary=True)
    if stationary := phase_stationary.decide(alone, work, target):
        return stationary
    rows, splits = _task_tile(folded, target, tile, vector, size, pack)
    taps = math.prod(axis.max_taps for axis in folded.plan.axes)
    row_weights = taps * folded.plan.in_channels * folded.plan.filters * size
    inner = far and splits == 1 and row_weights <= target.l1_bytes
    shape = (vector, tile.registers, tile.width, rows, splits)
    tiling = Tiling("phase", *shape, fold, pack, channels_outer=not inner)
    asking = dataclasses.replace(tiling, fetch=True)
    far = math.prod(work.plan.input_shape[1:]) * size > target.l2_bytes
    if asks(target) and far and can_ask(work, asking):
        tiling = asking
    return with_stretch(tiling, work, target)


def can_ask(work: Workload, tiling: Tiling) -> bool:
    """Whether `Tiling.fetch` makes a difference."""
    without = dataclasses.replace(tiling, fetch=False)
    return PhaseForm(work, tiling).asks and not PhaseForm(work, without).asks


def mean_steps(work: Workload) -> int:
    """Steps of a register tile: input channels times taps, on average over the phases."""
    taps = math.prod(axis.kernel / axis.stride for axis in work.plan.axes)
    return max(1, round(work.plan.in_channels * taps))


def _is_far(work: Workload, target: CpuTarget) -> bool:
    """Whether register tiles store to memory: rows that are collected first do not."""
    if work.plan.channels_first or work.mixed_axes:
        return False
    size = numpy_dtype(work.output_dtype).itemsize
    return math.prod(work.output_shape[1:]) * max(1, work.plan.batch) * size > target.l2_bytes


def with_lanes(tiling: Tiling, layout: Tiling, work: Workload, target: CpuTarget) -> Tiling:
    """The tiling of another shape or target for the same layer.

    With the lanes (and so the packed weights) of ``layout``.
    """
    if (tiling.vector, tiling.registers) == (layout.vector, layout.registers):
        return dataclasses.replace(tiling, last=layout.last)
    folded = (work.couple() if tiling.coupled else work).folded()
    filters, width = folded.plan.filters, tiling.width
    if tiling.form == "phase":
        counts = [one.count for one in folded.plan.axes[2].phases if one.taps and one.count]
        available = target.vector_registers
        width = register_tile(filters, counts, layout.vector, available, layout.registers).width
    blocks, rest = divmod(filters, layout.vector * layout.registers)
    splits = 1 if rest or blocks % tiling.splits else tiling.splits
    found = dataclasses.replace(
        tiling,
        vector=layout.vector,
        registers=layout.registers,
        last=layout.last,
        width=width,
        splits=splits,
    )
    return with_stretch(found, work, target) if found.stretch else found


def _task_tile(
    work: Workload, target: CpuTarget, tile: RegisterTile, vector: int, size: int, pack: bool
) -> tuple[int, int]:
    """Rows of a task tile, and parts into which its channel blocks are split."""
    depth, height, width = work.plan.axes
    positions = [(a.out - 1 + a.lo) // a.stride - a.lo // a.stride + 1 for a in (depth, height)]
    batch = max(1, work.plan.batch)
    wanted = _TILES_A_CORE * target.cores
    left, right = border(work)
    row_bytes = (width.size + left + right) * work.plan.in_channels * size * depth.max_taps
    fit = max(1, int(target.l2_bytes / 2 / max(1, row_bytes)) - height.max_taps + 1)
    rows = max(1, min(fit, positions[1], 16 if pack else 4))
    light = math.prod(work.plan.kernel_shape) * size <= target.l2_bytes / 2
    most = (_LIGHT_TILES_A_CORE if light else _TILES_A_CORE) * target.cores
    while rows > 1 and batch * positions[0] * -(-positions[1] // rows) < most:
        rows -= 1
    # As many tiles, but even ones: a short last one costs a copy, and a core that waits.
    rows = -(-positions[1] // -(-positions[1] // rows))
    tiles = batch * positions[0] * -(-positions[1] // rows)
    blocks, rest = divmod(work.plan.filters, tile.registers * vector)
    line = work.plan.channels_first or work.mixed_axes
    splits = 1
    if not rest and not line:
        for splits in range(1, blocks + 1):
            if blocks % splits == 0 and tiles * splits >= wanted:
                break
        else:
            splits = blocks
    return rows, splits
