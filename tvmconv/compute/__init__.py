"""The algorithms: from a workload and its tiling to S-TIR functions with named blocks.

No schedule is applied here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tvmconv.compute.tiling import algorithm
from tvmconv.errors import ScheduleError

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.compute.frame import Frame
    from tvmconv.compute.tiling import Tiling
    from tvmconv.compute.workload import Workload

__all__ = ["NONFINITE", "Form", "Lowered", "layout", "lower"]

#: How far NaN and infinities spread, the least first.
NONFINITE = ("exact", "row-ends", "tile")


@dataclass(frozen=True)
class Lowered:
    """The algorithm of one workload, before scheduling.

    Attributes
    ----------
    kernel, packer, finish : tvm.tirx.PrimFunc
        The functions of ABI order (input, weights, bias, output, scratch, batch, begin, end),
        (kernel, bias, packed, packed_bias) and (output, batch). ``finish`` is None unless the
        activation mixes over more than a row.
    tiles_per_sample : int
        Task tiles of one sample.
    packed_size, bias_size, scratch_size : int
        Elements of the accumulation dtype: packed kernel, packed bias, scratch of one task.
    """

    work: Workload
    tiling: Tiling
    kernel: Any
    packer: Any
    finish: Any
    tiles_per_sample: int
    packed_size: int
    bias_size: int
    scratch_size: int
    form: Form

    @property
    def layout(self) -> object:
        """What the packed weights look like: kernels with equal layouts can share them."""
        return self.form.layout

    @property
    def weights_nonfinite(self) -> str:
        """Where NaN and infinities in a kernel go that comes at run time.

        One of `NONFINITE`: to what their taps reach, also to the ends of rows, where a tap meets a
        border of zeros, or to whole tiles.
        """
        from tvmconv.compute.phase import border

        if algorithm(self.tiling.form) != "direct":
            return "tile"
        bordered = self.tiling.form in ("phase", "voxel") and border(self.work) != (0, 0)
        return "row-ends" if bordered else "exact"

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The packed weights of Keras' kernel and bias, one-dimensional.

        The bias behind the kernel.
        """
        return self.form.pack(kernel, bias)


class Form(Protocol):
    """One way to compute a workload: what each file of a form provides."""

    @property
    def layout(self) -> object:
        """See `Lowered.layout`."""

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""

    def packer(self) -> Any:
        """The function that packs the weights."""

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """What the packer does, in NumPy."""


def lower(work: Workload, tiling: Tiling) -> Lowered:
    """Write the algorithm of ``work`` in the form that ``tiling`` names.

    Raises
    ------
    ScheduleError
        The form cannot compute it so (`legality`).
    """
    from tvmconv.compute import finish, legality

    reason = legality.refusal(work.joined(), tiling)
    if reason is not None:
        raise ScheduleError(f"an illegal tiling: {reason}. Received: {tiling}")
    form = _form(work, tiling)
    kernel, frame = form.kernel()
    return Lowered(
        work,
        tiling,
        kernel,
        form.packer(),
        finish.whole(work) if work.finishes_whole else None,
        frame.tiles_per_sample,
        frame.packed_size,
        frame.bias_size,
        frame.scratch_size,
        form,
    )


def layout(work: Workload, tiling: Tiling) -> object:
    """What the packed weights would look like: `Lowered.layout`, with nothing written."""
    return _form(work, tiling).layout


def _form(work: Workload, tiling: Tiling) -> Form:
    from tvmconv.compute.columns import ColumnForm
    from tvmconv.compute.definition import DefinitionForm
    from tvmconv.compute.dots import DotForm
    from tvmconv.compute.matrix import MatrixForm
    from tvmconv.compute.pair_voxels import pair_form
    from tvmconv.compute.phase import PhaseForm
    from tvmconv.compute.toom_cook import ToomCookForm
    from tvmconv.compute.toom_cook_dots import ToomCookDotForm
    from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm
    from tvmconv.compute.voxels import VoxelForm

    forms: dict[str, Callable[[Workload, Tiling], Form]] = {
        "columns": ColumnForm,
        "definition": DefinitionForm,
        "dots": DotForm,
        "matrix": MatrixForm,
        "pairs": pair_form,
        "phase": PhaseForm,
        "toom-cook": ToomCookForm,
        "voxel": VoxelForm,
    }
    if tiling.across:
        forms["toom-cook"] = ToomCookVoxelForm
    elif tiling.dots == work.plan.filters:
        forms["toom-cook"] = ToomCookDotForm
    if tiling.form not in forms:
        raise ScheduleError(f"an illegal tiling: there is no such form. Received: {tiling}")
    return forms[tiling.form](work.joined(), tiling)
