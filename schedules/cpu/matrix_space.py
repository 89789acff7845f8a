"""What tuning may change in the matrix form.

Fixed: lanes, and the filters of a register tile (the layout of the weights). Free: its registers of
voxels, and register tiles of a task.

Not offered: what the rule does not serve, and more sums than there are registers.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.matrix import MatrixForm
from tvmconv.schedules.cpu import matrix
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

#: Registers that are not sums: those of inputs and of a weight.
_MOST_WIDTH, _MOST_ROWS = 3, 32


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """The structure of the matrix form; none where the rule does not serve the workload."""
    base = matrix.base(work, target)
    if base is None:
        return []
    rows = steps(min(_MOST_ROWS, MatrixForm(work, base).tiles), default.rows)
    choices = (("width", tuple(range(1, _MOST_WIDTH + 1))), ("rows", rows))
    start = dataclasses.replace(base, width=1)
    return [Variant(start, choices, partial(_fits, work, target), partial(matrix.cycles, work))]


def _fits(work: Workload, target: CpuTarget, tiling: Tiling) -> bool:
    columns = MatrixForm(work, tiling).panels_shape[3]
    return columns * tiling.width + tiling.width + 1 <= target.vector_registers
