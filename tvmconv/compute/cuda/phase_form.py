"""What the forms share whose blocks compute tiles of the output phases, all in one launch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tvmconv.compute import lanes
from tvmconv.compute.cuda import Kernel, mixing
from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.slices import columns_group
from tvmconv.compute.cuda.threads import Threads
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.element import storage
from tvmconv.compute.lanes import Group
from tvmconv.compute.workload import Workload

__all__ = ["STATIC_SHARED", "Block", "PhaseForm"]


STATIC_SHARED = 48 << 10
"""Most bytes of shared memory that a kernel can declare; of more the launch gives the size."""


class Block(Protocol):
    """Emits what one block of threads does."""

    def emit(self) -> None:
        """All of it."""


@dataclass(frozen=True)
class PhaseForm(ABC):
    """The phase form of one workload under one tiling: all phases in one launch.

    Weights are packed in the accumulation dtype, their columns side by side, and a block has a tile
    of voxels x columns of one phase, unless a form says otherwise.
    """

    work: Workload
    tiling: CudaTiling

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes."""
        return self.work.folded()

    @property
    def group(self) -> Group:
        """The packed columns, side by side, in whole vectors."""
        return columns_group(self.folded)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.folded.plan.kernel_shape, self.group)

    @property
    def packed_size(self) -> int:
        """Numbers of the packed weights, without the bias."""
        return lanes.packed_size(self.folded, [self.group])

    @property
    def packed_sizes(self) -> tuple[int, int, int]:
        """Bytes of the packed weights with the bias, where the bias begins, bytes of an element."""
        size = self.packed_size
        return (size + self.group.lanes) * self.element, size * self.element, self.element

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.folded, [self.group])

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """The same in NumPy."""
        return lanes.pack(self.work, self.folded, [self.group], kernel, bias).tobytes()

    @property
    def element(self) -> int:
        """Bytes of a number of the accumulation dtype."""
        return np.dtype(self.work.accumulate_dtype).itemsize

    @property
    def vector(self) -> int:
        """Numbers of the accumulation dtype in 16 bytes."""
        return 16 // self.element

    @property
    def block_shape(self) -> tuple[int, int]:
        """Voxels and columns of a block."""
        return self.tiling.block_voxels, self.tiling.block_channels

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of a sample."""
        room = Room(self.folded.plan)
        voxels, columns = self.block_shape
        return -(-room.voxels // voxels) * room.phases, -(-self.folded.plan.filters // columns), 1

    @property
    @abstractmethod
    def shared_bytes(self) -> int:
        """Shared memory of a block."""

    @property
    def dynamic_bytes(self) -> int:
        """What of it the launch gives."""
        return 0

    def dtypes(self, serial: bool) -> tuple[str, str]:
        """Of the weights and the input, as the kernel reads them."""
        del serial
        return self.work.accumulate_dtype, storage(self.work.input_dtype)

    @abstractmethod
    def block(self, threads: Threads) -> Block:
        """What a block does."""

    def kernels(self) -> tuple[Kernel, ...]:
        """One kernel, and one more for an activation that mixes voxels or channels."""
        if self.work.empty:
            return ()
        kernel = Kernel(
            "conv",
            ("input", "weights", "bias", "output", "batch"),
            self.grid,
            True,
            self.tiling.threads,
            self._emit,
            self.shared_bytes,
            self.tiling.resident,
            self.dynamic_bytes,
        )
        return (kernel, mixing.kernel(self.work)) if self.work.mixed_axes else (kernel,)

    @property
    def stored(self) -> Workload:
        """The workload whose output the kernel writes."""
        return self.folded

    def _emit(self, symbol: str, serial: bool) -> Any:
        kernel = self.kernels()[0]
        weights_dtype, input_dtype = self.dtypes(serial)
        threads = Threads(
            self.stored,
            weights_dtype,
            self.packed_size,
            self.group.lanes,
            kernel.grid,
            kernel.threads,
            True,
            serial,
            input_dtype,
        )
        return threads.function(symbol, kernel.arguments, lambda: self.block(threads).emit())
