"""The forms for GPUs: from a workload and its tiling to kernels in the words of CUDA.

A form emits a kernel twice from one text: with blocks and threads for the GPU, and with each of
these loops serial for a CPU, which is how its numbers are checked where no GPU is
(`threads.Threads`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.compute.workload import Workload

__all__ = ["CudaForm", "Kernel", "lower", "precision", "weights_nonfinite"]


@dataclass(frozen=True)
class Kernel:
    """One kernel of a form.

    Attributes
    ----------
    suffix : str
        What its symbol ends with.
    arguments : tuple of str
        What its parameters are: input, weights, bias, output, workspace, batch.
    grid : tuple of int
        Blocks along x, y, z; x is multiplied by the batch where ``per_sample``.
    threads : int
        Of a block.
    emit : callable
        ``emit(symbol, serial)`` gives the function: for the GPU, or with all loops serial.
    shared_bytes : int
        Shared memory of a block.
    resident : int
        Blocks that a multiprocessor should hold at once; 0: as many as fit.
    dynamic_bytes : int
        What of the shared memory the launch gives; the kernel declares the rest.
    workspace_bytes : int
        Of the workspace, for the whole (fixed) batch.
    """

    suffix: str
    arguments: tuple[str, ...]
    grid: tuple[int, int, int]
    per_sample: bool
    threads: int
    emit: Callable[[str, bool], Any]
    shared_bytes: int = 0
    resident: int = 0
    dynamic_bytes: int = 0
    workspace_bytes: int = 0


class CudaForm(Protocol):
    """One way to compute a workload on a GPU."""

    @property
    def work(self) -> Workload:
        """What is computed."""

    @property
    def tiling(self) -> CudaTiling:
        """How it is cut."""

    def kernels(self) -> tuple[Kernel, ...]:
        """The kernels, in the order in which they run; none where the output is empty."""

    def packer(self) -> Any:
        """The function (kernel, bias, packed, packed_bias) that packs the weights, for a CPU."""

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """What the packer does, in NumPy: the packed kernel, then the packed bias."""

    @property
    def layout(self) -> object:
        """What the packed weights look like: equal layouts can share them."""

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        """Bytes of the packed weights with the bias, where the bias begins, bytes of an element."""


def lower(work: Workload, tiling: CudaTiling) -> CudaForm:
    """The form that ``tiling`` names."""
    from tvmconv.compute.cuda.definition import CudaDefinition
    from tvmconv.compute.cuda.gemm import CudaGemm
    from tvmconv.compute.cuda.mma import CudaMma
    from tvmconv.compute.cuda.small import CudaSmall
    from tvmconv.compute.cuda.split import CudaSplit
    from tvmconv.compute.cuda.toom_cook import CudaToomCook
    from tvmconv.compute.cuda.wmma import CudaWmma

    forms: dict[str, Callable[[Workload, CudaTiling], CudaForm]] = {
        "definition": CudaDefinition,
        "gemm": CudaGemm,
        "mma": CudaMma,
        "small": CudaSmall,
        "split": CudaSplit,
        "toom-cook": CudaToomCook,
        "wmma": CudaWmma,
    }
    return forms[tiling.form](work, tiling)


def precision(form: CudaForm) -> str:
    """What products are made of: ``full`` (what the input's dtype holds) or ``tf32``."""
    return "tf32" if form.tiling.form == "mma" and form.work.input_dtype == "float32" else "full"


def weights_nonfinite(form: CudaForm) -> str:
    """Where NaN and infinities in a kernel go that comes at run time.

    Returns
    -------
    str
        One of `tvmconv.compute.NONFINITE`: ``exact``, or ``tile`` where taps of the form meet zeros
        for inputs that do not exist, beyond any side of the input.
    """
    if form.tiling.form == "definition":
        return "exact"
    if form.tiling.form == "toom-cook":
        return "tile"
    beyond = any(
        axis.useful_taps != sum(phase.count * phase.taps for phase in axis.phases)
        for axis in form.work.plan.axes
    )
    return "tile" if beyond else "exact"
