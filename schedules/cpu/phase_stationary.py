"""Phase task tiles that keep their weights: one phase of depth and height, all its rows.

Two kinds of layers want them.

- Short rows, of a kernel larger than the second-level cache: a register of weights serves a row's
  voxels, two a cycle, and memory cannot bring it for a few. Blocks of channels are task tiles of
  their own, and take their weights stretch by stretch.
- Kernels that the cache which cores share does not hold either, or brings late: each task tile of
  some rows would read all of them from memory again, be its rows ever so long. As few task tiles as
  the cores can share copy the input, which is large beside those of the first kind.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tvmconv.compute.finish import needs_line
from tvmconv.compute.phase import PhaseForm, computed, needs_packing
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu.traits import late_weights, most_copied, together

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["decide", "with_stretch"]

#: What a stretch of weights takes of the first-level cache, and how many channels it has at least:
#: the sums are loaded and stored for each.
_STRETCH_SHARE, _STRETCH_CHANNELS = 0.7, 32
#: What the caches beyond a core's own bring to it, cautiously.
_STREAM_BYTES_A_CYCLE = 8
#: Share of the second-level cache that a block's weights of one phase may fill, to stay in it.
_HELD = 0.6
#: Of weights that come late: second-level caches that the input may fill, and task tiles that a
#: core gets at least, where these are alike and where some have more taps.
_COPIED_LATE, _EVEN, _UNEVEN = 8, 2, 6


def decide(base: Tiling, work: Workload, target: CpuTarget) -> Tiling | None:
    """A tiling of stationary task tiles; None where the layer is better without.

    Parameters
    ----------
    base : Tiling
        What is known of it: registers, width, folding, packing.
    work : Workload
        The layer, as it comes.
    target : CpuTarget
        The processor.
    """
    folded = computed(work, base)
    size = 8 if work.accumulate_dtype == "float64" else 4
    longest = max((one.count for one in folded.plan.axes[2].phases if one.taps), default=1)
    if _streams_weights(folded, target, max(1, longest), base.vector * size):
        tiling = _by_blocks(base, work, target)
        if math.prod(PhaseForm(work, tiling).line_shape) * size <= target.l2_bytes / 2:
            return tiling
    return _of_late_weights(base, work, target)


def _kernel_bytes(work: Workload) -> int:
    size = 8 if work.accumulate_dtype == "float64" else 4
    return math.prod(work.plan.kernel_shape) * size


def _holds(folded: Workload, target: CpuTarget, lanes: int) -> bool:
    """Whether one phase's weights of so many channels stay in the second-level cache."""
    size = 8 if folded.accumulate_dtype == "float64" else 4
    taps = math.prod(axis.max_taps for axis in folded.plan.axes)
    return taps * folded.plan.in_channels * lanes * size <= _HELD * target.l2_bytes


def _streams_weights(work: Workload, target: CpuTarget, voxels: int, vector_bytes: int) -> bool:
    """Whether a kernel that no cache of a core holds would be read again for every short row.

    A register of weights serves a row's voxels, two a cycle: memory cannot bring them for a few.
    """
    if work.mixed_axes:
        return False
    depth, height, _ = work.plan.axes
    kernel = _kernel_bytes(work)
    uses = depth.useful_taps * height.useful_taps / (depth.kernel * height.kernel)
    input_bytes = math.prod(work.plan.input_shape[1:]) * 4
    # Read where it lies, an input may come from the next cache: its rows are shorter than what the
    # weights that they multiply would cost again. A copy of it must stay small.
    most = most_copied(work, target) if needs_packing(work) else max(target.l2_bytes, kernel)
    return (
        kernel > target.l2_bytes
        and input_bytes <= most
        and uses >= 1.5
        and 2 * vector_bytes / voxels > _STREAM_BYTES_A_CYCLE
    )


def _by_blocks(tiling: Tiling, work: Workload, target: CpuTarget) -> Tiling:
    """The tiling of task tiles for blocks of channels: registers, splits and stretches.

    A phase's weights stay in the second-level cache, unless rows take them by stretches.
    """

    def made(registers: int) -> Tiling:
        blocks, rest = divmod(folded.plan.filters, registers * tiling.vector)
        alone = dataclasses.replace(tiling, registers=registers)
        whole = with_stretch(dataclasses.replace(alone, splits=1 if rest else blocks), work, target)
        # Stretch by stretch a shorter last block is a task tile of its own.
        if rest and whole.stretch and not needs_line(work):
            return dataclasses.replace(whole, splits=blocks + 1)
        return whole

    folded = computed(work, tiling)
    registers = tiling.registers
    found = made(registers)
    form = PhaseForm(work, found)
    # Rows of blocks that are not equal are not split: the tiles must be enough without.
    enough = found.splits > 1 or form.tiles.count * max(1, work.plan.batch) >= 2 * target.cores
    if found.stretch and not form.sums_stay and enough:
        return found
    while registers > 1 and not _holds(folded, target, registers * tiling.vector):
        registers -= 1
    return made(registers)


def _of_late_weights(base: Tiling, work: Workload, target: CpuTarget) -> Tiling | None:
    """The tiling with as few splits as the cores allow, where weights come late; None elsewhere.

    240 to 240 filters, kernel 4, on 4x32x32 took 0.72 of the time on one core of Zen 3, and 0.87 on
    two; 640 to 512, kernel = stride = 2, on 8x9x8 0.38 and 0.52, 768 to 384 on 6x7x8 0.80 and 0.96;
    kernels of 3 to 5 MB 1.00 to 1.08, so that `traits.late_weights` is more. With blocks as task
    tiles, each with a copy of the input, the first took 0.98; with so many registers less that the
    cache holds their weights, 320 to 320, kernel 3, on 8x18x18 took 1.3 to 1.4 times as long.
    """
    folded = computed(work, base)
    lanes = base.registers * base.vector
    input_bytes = math.prod(folded.plan.input_shape[1:]) * 4
    if (
        work.mixed_axes
        or needs_line(work)
        or not 0 < late_weights(target) <= _kernel_bytes(folded)
        or input_bytes > _COPIED_LATE * target.l2_bytes
        or not _holds(folded, target, lanes)
    ):
        return None
    blocks, rest = divmod(folded.plan.filters, lanes)
    tiles = PhaseForm(work, base).tiles.count
    alike = all(one.taps == axis.max_taps for axis in folded.plan.axes for one in axis.phases)
    wanted = (_EVEN if alike else _UNEVEN) * target.cores
    for splits in range(1, (1 if rest else blocks) + 1):
        if blocks % splits == 0 and tiles * splits >= wanted:
            return dataclasses.replace(base, splits=splits)
    return None


def with_stretch(tiling: Tiling, work: Workload, target: CpuTarget) -> Tiling:
    """The tiling with the stretches of weights that its rows take in turn.

    All channels, where outputs have one tap: the sums leave the registers once. Else what the
    first-level cache holds; of spans the channels that leave together.
    """
    none = dataclasses.replace(tiling, stretch=0)
    folded = computed(work, tiling)
    channels, lanes = folded.plan.in_channels, tiling.registers * tiling.vector
    if not tiling.stationary:
        few = together(target) if PhaseForm(work, none).span else 0
        return dataclasses.replace(none, stretch=few)
    size = 8 if work.accumulate_dtype == "float64" else 4
    fit = int(_STRETCH_SHARE * target.l1_bytes / (lanes * size))
    for stretch in range(channels, _STRETCH_CHANNELS - 1, -1):
        if channels % stretch == 0:
            found = dataclasses.replace(tiling, stretch=stretch)
            form = PhaseForm(work, found)
            if form.sums_stay:
                return found
            if stretch <= fit:
                waiting = math.prod(form.sums_shape) * size
                return found if waiting <= target.l2_bytes / 4 else none
    return none
