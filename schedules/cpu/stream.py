"""Where outputs leave past the caches: the rule for `Tiling.stream`.

Strategy
  1. Outputs that the last-level cache holds are stored into it: who reads them next finds them.
  2. Of larger ones, where register tiles fill lines, all on processors where that was measured. On
     two cores of Zen 4 layers with products take 0.71 to 1.00 of their time, on Zen 3, whose
     registers are half a line, 0.58 to 0.98, with tiles that fill lines (`phase.register_tile`).
  3. Where most outputs are the bias (a kernel shorter than the stride) the time is that of the
     stores alone, on any x86-64: half the time on Zen 4.
  4. Not of half width, whose registers are half a line: with products between the halves of a line
     `unet_up5` in bfloat16 took 78 ms for 41.
  5. Toom-Cook: channels first, where rows leave scratch by whole lines: 0.92 to 1.01 of the time
     on Zen 4. On Zen 3 a line is two registers, stored one after the other: 0.91 to 0.97 of the
     time, and 1.25 with the second halves of eight lines after the first ones.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from tvmconv.compute.pair_voxels import pair_form
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.policies import numpy_dtype
from tvmconv.schedules.cpu.traits import traits

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["offered", "past", "serves", "streamed"]

#: Bytes of an output whose registers fill lines.
_LEAST_BYTES = 4
#: Most outputs with an input, of all, where the stores are the time.
_FEW = 0.5


def streamed(work: Workload, target: CpuTarget, tiling: Tiling) -> Tiling:
    """The tiling with the rule's `stream`, for a workload with its axes joined."""
    cook = tiling.form == "toom-cook"
    pays = traits(target).streams_toom_cook if cook else past(work, target)
    if not pays or not _leaves(work, target) or not serves(work, tiling):
        return tiling
    return dataclasses.replace(tiling, stream=True)


def past(work: Workload, target: CpuTarget) -> bool:
    """Whether outputs of the direct forms and pairs leave past the caches, where they can."""
    alone = target.architecture == "x86_64" and _summed(work) <= _FEW
    return (traits(target).streams or alone) and _leaves(work, target)


def _leaves(work: Workload, target: CpuTarget) -> bool:
    """Whether the last-level cache does not hold the outputs, which are wide enough."""
    wide = numpy_dtype(work.output_dtype).itemsize >= _LEAST_BYTES
    return wide and _output_bytes(work) > target.last_level_bytes


def serves(work: Workload, tiling: Tiling) -> bool:
    """Whether the stores of register tiles, or of what leaves scratch, fill lines."""
    if tiling.form == "toom-cook":
        whole = not tiling.across and tiling.dots < work.plan.filters
        return whole and ToomCookForm(work, tiling).fills_lines
    if tiling.form == "pairs":
        return pair_form(work, tiling).fills_lines
    return tiling.form == "phase" and PhaseForm(work, tiling).fills_lines


def offered(work: Workload, target: CpuTarget, tiling: Tiling) -> bool:
    """Whether tuning may change it: a core's own caches hold outputs that are read soon."""
    return (
        target.architecture == "x86_64"
        and _output_bytes(work) > target.l2_bytes
        and serves(work, tiling)
    )


def _output_bytes(work: Workload) -> int:
    """Bytes of the output, of one sample where the batch is open."""
    elements = math.prod(work.output_shape[1:]) * max(1, work.plan.batch)
    return elements * numpy_dtype(work.output_dtype).itemsize


def _summed(work: Workload) -> float:
    """The share of the outputs that have an input; the others are the bias."""
    share = 1.0
    for axis in work.plan.axes:
        share *= sum(phase.count for phase in axis.phases if phase.taps) / max(1, axis.out)
    return share
