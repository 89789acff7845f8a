"""What tuning may change in the column form.

Fixed in a variant: the axes whose taps the product sums, and the registers of a block of columns
(the layout of the weights); channels first: the columns of a block. Free: voxels of a register
tile, rows and planes of a task tile.

Not offered: what the rule does not serve, and task tiles whose scratch is larger than 16 MiB.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.columns import ColumnForm, columns_of, pieces_of
from tvmconv.compute.frame import positions
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu import column
from tvmconv.schedules.cpu.phase import most_voxels
from tvmconv.schedules.cpu.traits import tall
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_SCRATCH = 16 << 20
_MOST_REGISTERS = 4


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """All structures of the column form; none where few filters do not call for it."""
    size = 8 if work.accumulate_dtype == "float64" else 4
    widest = max(1, target.vector_bits // (8 * size))
    if column.refused(work) or widest < 4 or work.plan.filters >= widest:
        return []
    depth, height, width = work.plan.axes
    found = []
    if work.plan.channels_first:
        return _row_variants(work, target, default, widest)
    for reduced in column.reducible(work):
        columns = columns_of(work, reduced)
        vector = column.lanes_of(columns, widest)
        for registers in range(1, min(_MOST_REGISTERS, -(-columns // vector)) + 1):
            longest = max(voxels for _, voxels in pieces_of(width.size, vector))
            most = most_voxels(registers, target.vector_registers, tall=tall(target))
            choices = (
                ("width", tuple(range(1, min(longest, most) + 1))),
                ("rows", steps(positions(height), default.rows)),
                ("planes", steps(positions(depth), default.planes)),
            )
            pack = column.widens_rows(work, target)
            some = 0 if pack else column.widened_at_once(work, target)
            base = Tiling(
                "columns", vector, registers, 1, 1, pack=pack, reduced=reduced, stretch=some,
                tall=tall(target),
            )  # fmt: skip
            cycles = partial(column.cycles, work, target)
            found.append(Variant(base, choices, partial(_fits, work, size), cycles))
    return found


def _row_variants(work: Workload, target: CpuTarget, default: Tiling, widest: int) -> list[Variant]:
    """Channels first: the columns of a pass that suit some number of registers of voxels."""
    depth, height, _ = work.plan.axes
    size = 8 if work.accumulate_dtype == "float64" else 4
    tiles = {base[:2]: base[2] for base in column.row_tiles(work, target, widest)}
    found = []
    for (vector, registers), most in tiles.items():
        choices = (
            ("width", tuple(range(1, most + 1))),
            ("rows", steps(positions(height), default.rows)),
            ("planes", steps(positions(depth), default.planes)),
        )
        base = Tiling("columns", vector, registers, 1, 1)
        cycles = partial(column.cycles, work, target)
        found.append(Variant(base, choices, partial(_fits, work, size), cycles))
    return found


def _fits(work: Workload, size: int, tiling: Tiling) -> bool:
    return ColumnForm(work, tiling).offsets[-1] * size <= _MOST_SCRATCH
