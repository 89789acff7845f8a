"""The Toom-Cook rule for few filters and many taps, where the lanes of a register are channels.

Strategy
  1. Two or three outputs of each phase of the height in a tile; the widest register that the
     channels fill; as many outputs of a row in a register tile as the dot form's rule allows.
  2. Add up the cycles of products by the model of the dot form, those of the sums of input rows,
     and of products that become outputs.
  3. Take the cheapest whose scratch and packed weights keep the limits of Toom-Cook.

Whether it is taken at all, `toom_cook` decides.

The model was fitted on one core of a Zen 4: it is off by at most a tenth, and says up to a fifth
too much where scratch fills most of the second-level cache. What waits for that cache counts twice
as much where products are two a cycle, as on Intel's processors.

Not served, and why: more than four filters (registers of filters are full enough), heights of few
inputs and short sums (the error, see `outputs`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvmconv.compute.cook_schemes import phases
from tvmconv.compute.frame import LINE_BYTES, positions
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook_dots import ToomCookDotForm
from tvmconv.schedules.cpu import dot, voxel
from tvmconv.schedules.cpu.candidate import Candidate
from tvmconv.schedules.cpu.pace import in_halves, of_widest, pace, waiting
from tvmconv.schedules.cpu.toom_cook_voxel import MOST_SCRATCH, MOST_WEIGHTS

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "OTHERWISE",
    "candidates",
    "cycles",
    "is_one",
    "known",
    "outputs",
    "serves",
    "within_limits",
]

#: What this form needs instead of one to three taps in all phases.
OTHERWISE = (
    "(kernel size / stride); or three to five along the height, one to four filters, and "
    "many channels"
)
#: Outputs of a phase in a tile of the height.
_OUTPUTS = (2, 3)
#: Most filters whose lanes are input channels; lanes of a register of them.
_MOST_FILTERS, _LANES = 4, 16
#: Inputs of the height: with fewer most of a tile would be zeros, which have to cancel.
_LEAST_SIZE = 6
#: By the products of a scheme: those of a lane in each sum, of all taps of depth and width and all
#: channels, with which its errors stay below twice those of the dot form, whose sums are longer.
#: Four outputs err more.
_LEAST_SUM = {4: 8, 5: 8, 6: 16, 7: 40}
#: Additions of a sum of input rows, in pairs; cycles to store it, which waits in the second-level
#: cache, and until the inputs are there; of a product that becomes a part of an output; to begin a
#: product in a register tile. By measurement.
_ADDED, _STORED, _BACK, _BEGIN = 1.3, 3.0, 3.0, 2.0
#: Share of the second-level cache that scratch and weights may fill, and what a line that is read
#: costs beyond, or one of inputs where that cache does not hold them.
_HELD, _FAR = 0.8, 3.6
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


def is_one(work: Workload, tiling: Tiling) -> bool:
    """Whether a Toom-Cook tiling is of this form: no filter is left to other lanes."""
    return tiling.dots == work.plan.filters


def serves(work: Workload) -> bool:
    """Whether a workload can take the form."""
    plan = work.plan
    if dot.refused(work) or work.accumulate_dtype == "float64":
        return False
    if plan.filters > _MOST_FILTERS or any(axis.dilation > 1 for axis in plan.axes):
        return False
    return bool(outputs(work))


def known(work: Workload, target: CpuTarget) -> bool:
    """Whether the model was measured: channels first where products are one a cycle."""
    return in_halves(target) or not work.plan.channels_first


def outputs(work: Workload) -> list[int]:
    """Outputs of a phase that a tile of the height may have, by the errors."""
    depth, height, width = work.plan.axes
    taps = min(depth.max_taps, depth.size) * min(width.max_taps, width.size)
    found = []
    for m in _OUTPUTS if height.size >= _LEAST_SIZE else ():
        products = [one.scheme.products for one in phases(height, m)]
        if products and taps * work.plan.in_channels >= _LEAST_SUM[max(products)] * _LANES:
            found.append(m)
    return found


def candidates(work: Workload, target: CpuTarget, layout: Tiling | None) -> Iterator[Candidate]:
    """Tilings worth a look."""
    if not serves(work) or (layout is not None and not is_one(work, layout)):
        return
    depth = work.plan.axes[0]
    lanes = dot.lanes_of(work.plan.in_channels, max(1, target.vector_bits // 32))
    block = 0
    if layout is not None:
        block = layout.last or layout.vector
        lanes = min(lanes, block)
    some = outputs(work)
    if layout is not None:
        some = [m for m in some if m == layout.outputs[1]]
    for m, width in itertools.product(some, dot.widths(work, target.vector_registers)):
        for planes in voxel.parts(positions(depth)):
            tiling = Tiling(
                "toom-cook", lanes, 1, width, 1, pack=False, planes=planes, outputs=(1, m, 1),
                last=block, dots=work.plan.filters,
            )  # fmt: skip
            form = ToomCookDotForm(work, tiling)
            if within_limits(form):
                yield Candidate(cycles(form, target), tiling, form.scratch_size * 4)


def within_limits(form: ToomCookDotForm) -> bool:
    """Whether packed weights and scratch are small enough."""
    most = MOST_WEIGHTS * math.prod(form.work.plan.kernel_shape)
    return form.scratch_size * 4 <= MOST_SCRATCH and form.packed_size <= most


def cycles(form: ToomCookDotForm, target: CpuTarget) -> float:
    """Cycles of a sample on one core, by the model; uneven shares of the cores count as work."""
    work, tiling = form.work, form.tiling
    depth, height, width = work.plan.axes
    unit, lines = pace(target, tiling.vector, 4), tiling.vector * 4 / LINE_BYTES
    tile = dot.DotTile(tiling.vector, tiling.width, lines, unit)
    first = work.plan.channels_first
    step, ends = dot.row_cycles(width, work.plan.filters, first, tile, dot.costs(work, target))
    tiles, products = form.height_tiles, sum(one.scheme.products for one in form.phases)
    total = step * form.registers * depth.useful_taps * tiles * products
    total += ends * depth.out * height.out
    calls = sum(one.count for one in form.tiles) * depth.out * tiles * products
    cells = width.out * work.plan.filters * depth.out * tiles * products
    total += unit * (_BEGIN * calls + _BACK * cells)
    chunks = -(-positions(depth) // tiling.planes)
    planes = min(depth.size * chunks, depth.size + (chunks - 1) * (depth.max_taps - 1))
    sums = planes * tiles * width.size * form.registers * products
    total += sums * (_ADDED + unit * _STORED)
    rows = planes * tiles * form.rows_shape[0] * width.size * form.registers
    total += unit * dot.TRANSPOSE * rows
    if math.prod(work.plan.input_shape[1:]) * 4 > target.l2_bytes:
        total += waiting(unit) * _FAR * lines * (rows or sums)
    if (form.scratch_size + form.packed_size) * 4 > _HELD * target.l2_bytes:
        read = depth.useful_taps * width.size * form.registers * tiles * products
        total += waiting(unit) * _FAR * lines * read
    total *= of_widest(target, tiling.vector, 4)
    tasks = chunks * tiles * max(1, work.plan.batch)
    uneven = -(-tasks // target.cores) * target.cores / tasks
    return total * (uneven + _UNEVEN * target.cores / tasks)
