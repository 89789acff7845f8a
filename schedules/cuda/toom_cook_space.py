"""What tuning may change in the Toom-Cook form.

Fixed in a variant: the outputs of a tile along each axis (so the layout of the weights), and the
products of a thread. Free: the sums of a block along each axis, its channels, the channels of a
slice, and for how many blocks of a multiprocessor the registers are bounded. Threads follow; so
does how slices come to shared memory, by copies wherever all architectures have them.

Not offered: blocks that are no whole tiles of every phase, or more than twice what a phase has, and
layers with fewer than 8 channels on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.boxes import AxisBoxes
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.cuda.toom_cook import CudaToomCook
from tvmconv.compute.transforms import AxisTiles
from tvmconv.schedules.cuda import limits, toom_cook
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture
    from tvmconv.geometry import Axis

__all__ = ["variants"]

#: Voxels and channels of a thread.
_SIDES = ((8, 8), (8, 4), (4, 8))
_COLUMNS, _WIDTHS = (1, 2, 3, 4, 6, 8, 9, 12, 16, 24), (16, 32, 64)
_DEPTHS, _RESIDENT = (4, 8), (1, 2)
_LEAST_CHANNELS = 8


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each scheme of the axes and side of a thread; none where it does not serve."""
    if toom_cook.refusal(work) is not None:
        return []
    few = min(work.plan.in_channels, work.plan.filters) < _LEAST_CHANNELS
    if few and default.form != "toom-cook":
        return []
    widths = tuple(n for n in _WIDTHS if n <= limits.rounded(work.plan.filters, _WIDTHS[0]))
    copied = int(toom_cook.copies(targets))
    found = []
    for outputs in toom_cook.schemes(work):
        columns = [_columns(a, m) for a, m in zip(work.plan.axes, outputs, strict=True)]
        if default.outputs == outputs:
            columns = [
                tuple(sorted({*c, n})) for c, n in zip(columns, default.columns, strict=True)
            ]
        for voxels, lanes in _SIDES:
            base = CudaTiling(
                "toom-cook", 1, lanes, voxels, 1, widths[0], _DEPTHS[0], 2, 1,
                outputs=outputs, columns=(1, 1, 1), copied=copied,
            )  # fmt: skip
            choices = (
                *zip(("columns.depth", "columns.height", "columns.width"), columns, strict=True),
                ("block_channels", widths),
                ("depth", _DEPTHS),
                ("resident", _RESIDENT),
            )
            fits = partial(_fits, work, tuple(targets))
            cycles = partial(toom_cook.cost, work)
            found.append(Variant(base, choices, fits, cycles, partial(toom_cook.complete, work)))
    return found


def _columns(axis: Axis, outputs: int) -> tuple[int, ...]:
    """Sums along an axis that are whole tiles of all its phases; one value that has all of them."""
    tiles = AxisTiles(axis, outputs, 1, shared=True)
    found = []
    for columns in _COLUMNS:
        boxes = AxisBoxes(tiles, columns)
        if not boxes.whole:
            continue
        found.append(columns)
        if all(phase.count == 1 for phase in boxes.phases):
            break
    return tuple(found)


def _fits(work: Workload, targets: Sequence[Architecture], tiling: CudaTiling) -> bool:
    if not toom_cook.fits(work, tiling, targets):
        return False
    form = CudaToomCook(work, tiling)
    shared = form.shared_bytes * tiling.resident
    return not toom_cook.spills(form) and all(shared <= one.shared_bytes for one in targets)
