"""What the forms for few filters take beside their models, on processors where that was measured.

The models were made on processors with 32 registers; with 16 and two products a cycle the forms
differ in what they leave out. Where a processor has shares (`traits`), forms are compared by these,
else by the margins of each rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmconv.schedules.cpu.traits import traits

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["CACHES", "share"]

#: Bytes that the caches hold; inputs that are more come from memory.
CACHES = 16 << 20
#: Bits of the registers with which it was measured.
_BITS = 256
#: Filters from which dots take more than their model says.
_MORE = 3


def share(work: Workload, target: CpuTarget, form: str) -> float | None:
    """What a form takes of its model's cycles, where the voxel form takes 1; None: not measured.

    The form is ``"columns"``, ``"dots"`` or ``"phase"``.
    """
    known = traits(target)
    found = known.few_first if work.plan.channels_first else known.few_last
    if not work.plan.channels_first and work.input_bytes > CACHES:
        found = known.few_far
    if found is None or target.vector_bits != _BITS or work.accumulate_dtype != "float32":
        return None
    width = work.plan.axes[2]
    shares = {
        "columns": found.columns,
        "dots": found.more_dots if work.plan.filters >= _MORE else found.dots,
        "phase": found.split if width.kernel == width.stride else found.phase,
    }
    return shares[form]
