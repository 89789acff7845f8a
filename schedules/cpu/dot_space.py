"""What tuning may change in the dot form.

Fixed: lanes (the layout of the weights). Free: outputs of a register tile, rows and planes of a
task tile.

Not offered: what the rule does not serve, register tiles whose sums and inputs are more than the
registers, and task tiles whose copied rows are larger than 16 MiB.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.dots import DotForm
from tvmconv.compute.frame import positions
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu import dot
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_SCRATCH = 16 << 20


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """The structure of the dot form; none where few filters do not call for it."""
    tiling = dot.decide(work, target, always=True)
    size = 8 if work.accumulate_dtype == "float64" else 4
    if tiling is None or work.plan.filters >= max(1, target.vector_bits // (8 * size)):
        return []
    depth, height, _ = work.plan.axes
    choices = (
        ("width", tuple(dot.widths(work, target.vector_registers))),
        ("rows", steps(positions(height), default.rows)),
        ("planes", steps(positions(depth), default.planes)),
    )
    base = Tiling("dots", tiling.vector, 1, 1, 1, pack=tiling.pack, coupled=tiling.coupled)
    return [Variant(base, choices, partial(_fits, work, size), partial(dot.cycles, work, target))]


def _fits(work: Workload, size: int, tiling: Tiling) -> bool:
    return math.prod(DotForm(work, tiling).ring_shape) * size <= _MOST_SCRATCH
