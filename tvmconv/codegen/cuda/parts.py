"""What a CUDA library is linked from: a fat binary, launches, weights and a packer for the host.

A launcher needs nothing else. For a call with ``batch`` samples it does, for the shape's
`Launch`es in their order and on one stream::

    grid.x = launch.grid[0] * (batch if launch.per_sample else 1)
    cuLaunchKernel(function(launch.symbol), grid, launch.block, launch.shared_bytes, stream, args)

and launches nothing for a batch of 0, or a shape whose output is empty (it has no launches).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

    from tvmconv.compute.cuda import CudaForm

__all__ = ["ARGUMENTS", "MAX_GRID_X", "CudaCode", "CudaShape", "Launch"]

ARGUMENTS: Final = ("input", "weights", "bias", "output", "workspace", "batch")
"""What an argument of a kernel can be: five device pointers, and an int64.

``bias`` is ``weights`` + `CudaCode.bias_offset` bytes."""

MAX_GRID_X: Final = 2**31 - 1
"""Most blocks along x. A call whose ``grid[0] * batch`` is more must be refused: the batch is too
large."""

_C_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Parameters
    ----------
    symbol
        Name of the kernel in the fat binary (extern "C").
    grid
        Blocks along x, y, z. Where `per_sample`, x is multiplied by the batch.
    per_sample
        Whether the grid grows with the batch.
    block
        Threads along x, y, z.
    shared_bytes
        Dynamic shared memory. For any the launcher must first raise the function's attribute
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
    arguments
        What each parameter is, of `ARGUMENTS`.
    static_shared_bytes
        Shared memory that the kernel declares itself; for information only.
    """

    symbol: str
    grid: tuple[int, int, int]
    per_sample: bool
    block: tuple[int, int, int]
    shared_bytes: int
    arguments: tuple[str, ...]
    static_shared_bytes: int = 0

    def __post_init__(self) -> None:
        assert _C_NAME.match(self.symbol), self.symbol
        assert min(self.grid) >= 1 and self.grid[0] <= MAX_GRID_X
        assert max(self.grid[1:]) <= 65535, self.grid
        assert min(self.block) >= 1 and math.prod(self.block) <= 1024 and self.block[2] <= 64
        assert self.shared_bytes >= 0 and set(self.arguments) <= set(ARGUMENTS)


@dataclass(frozen=True)
class CudaShape:
    """One input shape.

    Parameters
    ----------
    input_shape, output_shape
        Five sizes each, in the layout of the layer; -1 in front stands for an open batch.
    launches
        In order; none where the output is empty.
    workspace_bytes
        Device memory that a call needs, 256-byte aligned, whatever the batch; 0 for none.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    launches: tuple[Launch, ...]
    workspace_bytes: int = 0


@dataclass(frozen=True)
class CudaCode:
    """The device code of one layer.

    Parameters
    ----------
    source
        CUDA C, as nvcc gets it: what the fat binary was made from.
    fatbin
        Cubins of `architectures` and PTX of the last of them; empty before `nvcc.build`.
    architectures
        ``("sm_75", ...)``, ascending.
    shapes
        One for each input shape.
    packed_bytes, bias_offset, packed_element
        Of the packed weights: size with the bias, where the bias begins, bytes of an element of
        the kernel part. Device pointers to packed weights must be 256-byte aligned (as cuMemAlloc
        gives them).
    packer
        A TVM function (kernel, bias, packed, packed_bias) for the *host*, of the same C type as a
        CPU artifact's: ``lowering.emit({symbol: packer}, cpu_target)`` compiles it.
    decisions
        Per shape, the tiling as JSON numbers; ``form`` among them.
    form
        What packs baked weights in NumPy.
    """

    source: str
    fatbin: bytes
    architectures: tuple[str, ...]
    shapes: tuple[CudaShape, ...]
    packed_bytes: int
    bias_offset: int
    packed_element: int
    packer: Any
    decisions: tuple[dict[str, Any], ...]
    form: CudaForm

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """Packed weights of Keras' kernel and bias, `packed_bytes` of them: what is baked in."""
        packed = self.form.pack(kernel, bias)
        assert len(packed) == self.packed_bytes
        return packed
