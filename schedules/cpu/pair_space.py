"""What tuning may change in the pair form.

Fixed: lanes, and filters of a register tile where channels are first (the layout of the weights).
Free: voxels of a register tile where they are not the lanes, register tiles of a task, panels that
all of them take before the next ones, tasks that share them, whether a task asks for the inputs of
the next one where channels are last, and whether outputs leave past the caches.

Not offered: what the rule does not serve, and tasks whose scaled inputs are larger than 4 MiB.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.pair_voxels import pair_form
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu import pair, stream
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_SCRATCH = 4 << 20
#: Voxels of a register tile worth a try.
_WIDTHS = range(6, 17)
_MOST_SPLITS = 32


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """The structure of the pair form; none where the rule does not serve the workload."""
    if pair.refusal(work, target) is not None:
        return []
    voxels = math.prod(axis.size for axis in work.plan.axes)
    own = default if default.form == "pairs" else pair.require(work, target)
    panels = pair_form(work, own).panels
    width = ("width", tuple(width for width in _WIDTHS if width <= voxels))
    choices = (
        *(() if work.plan.channels_first else (width,)),
        ("rows", steps(-(-voxels // 16), own.rows)),
        ("stretch", steps(panels, own.stretch)),
        ("splits", steps(max(min(panels, _MOST_SPLITS), own.splits), own.splits)),
    )
    base = Tiling("pairs", own.vector, own.registers, 1, 1)
    if not work.plan.channels_first:
        choices = (*choices, ("fetch", (0, 1)))
    if stream.offered(work, target, base):
        choices = (*choices, ("stream", (0, 1)))
    return [Variant(base, choices, partial(_fits, work), partial(pair.cycles, work, target))]


def _fits(work: Workload, tiling: Tiling) -> bool:
    form = pair_form(work, tiling)
    share = -(-form.panels // tiling.splits)
    held = math.prod(form.rows_shape) * 4 <= _MOST_SCRATCH
    # No task is left without a panel.
    return held and tiling.stretch <= share and -(-form.panels // share) == tiling.splits
