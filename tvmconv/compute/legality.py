"""Which tilings a form can compute: what rules promise, and what comes from elsewhere must keep.

A tiling of a rule or of a space is legal by the way it is made. One that was written by hand, or
read from a file, may cut a row so that products are left out, or name more lanes than there are;
such a kernel would compute something else without a word. What is only slow is legal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tvmconv.compute import finish

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload

__all__ = ["refusal"]

#: Decisions that are counts; others may be 0.
_COUNTS = ("vector", "registers", "width", "rows", "splits", "planes")
_AXES = 3
_NOT_COUPLED = "only registers of bfloat16 channels that lie side by side are coupled"


def refusal(work: Workload, tiling: Tiling) -> str | None:
    """Why a workload, with its axes joined, cannot be computed so; None where it can."""
    for name in _COUNTS:
        if getattr(tiling, name) < 1:
            return f"{name} must be 1 or more"
    if min(*tiling.outputs, *tiling.block) < 1:
        return "outputs and block must be 1 or more"
    if min(tiling.last, tiling.reduced, tiling.stretch, tiling.dots, tiling.shared) < 0:
        return "no number may be negative"
    if tiling.vector & (tiling.vector - 1):
        return "the lanes of a register must be a power of two"
    rule = _RULES.get(tiling.form)
    return None if work.empty or rule is None else rule(work, tiling)


def _whole_rows(work: Workload, tiling: Tiling) -> str | None:
    """Of forms that keep no whole rows in scratch."""
    del tiling
    return "the activation mixes values within rows" if work.row_axis is not None else None


def _phase(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.phase import PhaseForm

    if tiling.last % tiling.vector:
        return "the last block must have whole registers"
    if work.mixed_axes and (tiling.stationary or tiling.splits > 1):
        return "the activation mixes values of several task tiles"
    form = PhaseForm(work, tiling)
    if tiling.coupled and (tiling.vector == 1 or not form.folded.coupled):
        return _NOT_COUPLED
    if tiling.splits == 1 or (form.is_uneven and form.stretch and not finish.needs_line(work)):
        return None
    if len(form.groups) > 1 or form.groups[0].blocks % tiling.splits:
        return "splits must divide equal blocks of channels"
    if finish.needs_line(work) and not tiling.stationary:
        return "task tiles that split the channels keep no whole rows"
    return None


def _columns(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.columns import ColumnForm

    axes = work.plan.axes[: tiling.reduced]
    if axes and work.plan.channels_first:
        return "no axis is reduced where channels are first"
    if tiling.reduced > _AXES - 1 or any(axis.kernel % axis.stride for axis in axes):
        return "an axis is reduced only where its phases have equally many taps"
    if tiling.stretch > (work.plan.in_channels if ColumnForm(work, tiling).widens_tiles else 0):
        return "stretch counts channels that register tiles widen"
    return _whole_rows(work, tiling)


def _dots(work: Workload, tiling: Tiling) -> str | None:
    channels = tiling.vector * (2 if tiling.coupled else 1)
    block = tiling.last or channels
    if work.plan.in_channels % block or block % channels:
        return "input channels must fill blocks of whole registers"
    if tiling.coupled and (tiling.vector == 1 or not work.couple().coupled):
        return _NOT_COUPLED
    return _whole_rows(work, tiling)


def _pairs(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.pair_voxels import PairVoxelForm, pair_form
    from tvmconv.compute.pairs import serves

    if not serves(work):
        return "pairs are for kernel = stride, float32 sums, and no cropped output"
    if tiling.stretch < 1:
        return "stretch must be 1 or more"
    form = pair_form(work, tiling)
    if isinstance(form, PairVoxelForm):
        return "voxels are fewer than lanes" if form.voxels < tiling.vector else None
    # What belongs to the voxels of a register tile is a register.
    return "a register tile has more voxels than lanes" if tiling.width > tiling.vector else None


def _matrix(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.matrix import serves

    if serves(work, tiling):
        return None
    return "the matrix form is for kernel = stride, channels first, and rows of registers or pieces"


def _toom_cook(work: Workload, tiling: Tiling) -> str | None:
    if work.accumulate_dtype == "float64":
        return "Toom-Cook is for float32 sums"
    if 0 in work.plan.input_shape[1:] or any(axis.dilation > 1 for axis in work.plan.axes):
        return "Toom-Cook has no scheme for the layer"
    if tiling.dots == work.plan.filters and not tiling.across:
        return _toom_cook_dots(work, tiling)
    return _schemes(work, tiling) or (_across if tiling.across else _toom_cook_lanes)(work, tiling)


def _schemes(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.schemes import SCHEMES

    for axis, outputs in zip(work.plan.axes, tiling.outputs, strict=True):
        if any((outputs, phase.taps) not in SCHEMES for phase in axis.phases):
            return f"Toom-Cook has no scheme of {outputs} outputs for an axis"
    return None


def _toom_cook_dots(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.cook_schemes import phases

    if not phases(work.plan.axes[1], tiling.outputs[1]):
        return f"Toom-Cook has no scheme of {tiling.outputs[1]} outputs for the height"
    return _dots(work, tiling)


def _across(work: Workload, tiling: Tiling) -> str | None:
    if tiling.paired:
        return "tiles as lanes have no pairs"
    return _whole_rows(work, tiling)


def _toom_cook_lanes(work: Workload, tiling: Tiling) -> str | None:
    from tvmconv.compute.toom_cook import ToomCookForm

    if tiling.shared > _AXES:
        return "shared is a number of axes"
    if tiling.dots > work.plan.filters:
        return "dots are more than there are filters"
    form = ToomCookForm(work, tiling)
    parts = form.axes[2].blocks > 1
    if parts and tiling.block[2] % tiling.width:
        return "tasks with parts of rows must have whole register tiles along the width"
    if parts and finish.needs_line(work) and not form.waits:
        return "tasks must have the whole rows that an activation mixes"
    if tiling.paired and any(g.lanes % tiling.vector for g in form.groups if not g.dots):
        return "pairs take whole registers of filters"
    return None


#: Of the forms that can fail so; the others compute whatever has sensible numbers.
_RULES: dict[str, Callable[[Workload, Tiling], str | None]] = {
    "columns": _columns,
    "dots": _dots,
    "matrix": _matrix,
    "pairs": _pairs,
    "phase": _phase,
    "toom-cook": _toom_cook,
    "voxel": _whole_rows,
}
