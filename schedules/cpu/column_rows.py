"""The register tile of the column rule where channels are first: voxels are the lanes.

Strategy
  1. The widest registers that a row fills; the last one ends with the row.
  2. No axis is reduced: each input is read once, from memory, and its copy stays in the first-level
     cache for all columns.
  3. Of one to four registers of voxels, and as many columns as leave every sum in a register, take
     those with the fewest cycles: a broadcast weight serves the voxels, an input the columns.
  4. Take the form a tenth before the model says so, but for few channels on Zen 3: there the voxel
     form takes more than its model knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvmconv.schedules.cpu import few_filters
from tvmconv.schedules.cpu.traits import traits

if TYPE_CHECKING:
    from tvmconv.compute.columns import ColumnForm
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["LEAST", "first_cycles", "lanes_of", "margin", "product_cycles", "register_tiles"]

#: Voxels of the narrowest register that is used.
LEAST = 4
#: Registers of voxels side by side, at most.
_MOST = 4
#: Cycles to copy a register of inputs; and, for an input, the wait that the products do not hide,
#: and that where there are none; by measurement.
_COPY, _WAIT, _ALONE = 1.0, 0.4, 0.9
#: Share of the other forms' cycles below which this one is taken: layers whose products are more
#: than the caches hold at once take up to a tenth more than the model says. Up to so many channels
#: the share is the processor's (`traits.columns_first`).
_MARGIN, _FEW = 0.9, 32
#: Cycles to store a register of products, and to read it from the second-level cache.
_STORE = 4.0


def margin(work: Workload, target: CpuTarget) -> float:
    """Share of the other forms' cycles below which the column form is taken."""
    measured = few_filters.share(work, target, "columns")
    if not work.plan.channels_first:
        return 1 / (measured or 1.0)
    whole = work.plan.axes[2].size % (target.vector_bits // 32) == 0
    few = work.plan.in_channels <= _FEW and work.accumulate_dtype == "float32"
    if whole and few:
        return traits(target).columns_first
    return _MARGIN if measured is None else 1 / measured


def lanes_of(voxels: int, widest: int) -> int:
    """Lanes of a register: no more than a row has voxels."""
    lanes = widest
    while lanes > LEAST and lanes > voxels:
        lanes //= 2
    return lanes


def register_tiles(
    columns: int, vectors: int, available: int, only: int | None = None
) -> Iterator[tuple[int, int]]:
    """Columns of a pass and registers of voxels, ``only`` so many columns if that is given.

    Where a weight serves one register it is an operand of the product and needs none.
    """
    for width in range(1, min(_MOST, vectors) + 1):
        most = (available - width - (width > 1)) // width
        if only is not None:
            if only <= most:
                yield only, width
        elif most > 0:
            passes = -(-columns // most)
            yield -(-columns // passes), width


def first_cycles(form: ColumnForm) -> float:
    """Cycles to copy the first row of a plane, which no products hide."""
    _, vectors, channels, size = form.widened_shape
    return _ALONE * channels * vectors * size


def product_cycles(form: ColumnForm, unit: float) -> float:
    """Cycles of a row of products, its copy included; see `schedules.cpu.pace` for the unit."""
    _, vectors, channels, size = form.widened_shape
    whole, rest = divmod(vectors, form.tiling.width)
    total = 0.0
    for tiles, width in ((whole, form.tiling.width), (1, rest)):
        for group in form.groups:
            step = max(group.lanes * width, unit * (group.lanes + width), unit * 8) / 2
            ends = unit * _STORE * group.lanes * width
            total += tiles * group.blocks * (channels * step + ends) if width else 0.0
    return total + unit * channels * vectors * (_COPY + _WAIT * size)
