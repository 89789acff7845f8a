"""What tuning may change in the Toom-Cook form whose lanes are input channels.

Fixed in a variant: outputs of a tile of the height, and lanes (the layout of the weights). Free:
outputs of a register tile, and planes of a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmconv.compute.frame import positions
from tvmconv.compute.toom_cook_dots import ToomCookDotForm
from tvmconv.schedules.cpu import dot, toom_cook_dot
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]


def variants(work: Workload, target: CpuTarget) -> list[Variant]:
    """One for each scheme; none where the form does not serve the workload."""
    found: dict[tuple[int, int, int], Tiling] = {}
    planes = {positions(work.plan.axes[0])}
    for one in toom_cook_dot.candidates(work, target, None):
        found.setdefault(one.tiling.outputs, one.tiling)
        planes.add(one.tiling.planes)

    def form(tiling: Tiling) -> ToomCookDotForm:
        return ToomCookDotForm(work, tiling)

    choices = (
        ("width", tuple(dot.widths(work, target.vector_registers))),
        ("planes", steps(positions(work.plan.axes[0]), *planes)),
    )
    return [
        Variant(
            base,
            choices,
            lambda tiling: toom_cook_dot.within_limits(form(tiling)),
            lambda tiling: toom_cook_dot.cycles(form(tiling), target),
        )
        for base in found.values()
    ]
