"""What the forms share that compute a tile of voxels x columns of one output phase in a block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

from tvmconv.compute.cuda import Kernel, mixing
from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.threads import Threads
from tvmconv.compute.cuda.tiling import CudaTiling
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
    """The phase form of one workload under one tiling: all phases in one launch."""

    work: Workload
    tiling: CudaTiling

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes."""
        return self.work.folded()

    @property
    @abstractmethod
    def group(self) -> Group:
        """The packed columns, side by side."""

    @property
    @abstractmethod
    def packed_size(self) -> int:
        """Numbers of the packed weights, without the bias."""

    @property
    @abstractmethod
    def shared_bytes(self) -> int:
        """Shared memory of a block."""

    @property
    def dynamic_bytes(self) -> int:
        """What of it the launch gives."""
        return 0

    @abstractmethod
    def dtypes(self, serial: bool) -> tuple[str, str]:
        """Of the weights and the input, as the kernel reads them."""

    @abstractmethod
    def block(self, threads: Threads) -> Block:
        """What a block does."""

    def kernels(self) -> tuple[Kernel, ...]:
        """One kernel, and one more for an activation that mixes voxels or channels."""
        if self.work.empty:
            return ()
        room = Room(self.folded.plan)
        rows = -(-room.voxels // self.tiling.block_voxels)
        columns = -(-self.folded.plan.filters // self.tiling.block_channels)
        kernel = Kernel(
            "conv",
            ("input", "weights", "bias", "output", "batch"),
            (rows * room.phases, columns, 1),
            True,
            self.tiling.threads,
            self._emit,
            self.shared_bytes,
            self.tiling.resident,
            self.dynamic_bytes,
        )
        return (kernel, mixing.kernel(self.work)) if self.work.mixed_axes else (kernel,)

    def _emit(self, symbol: str, serial: bool) -> Any:
        kernel = self.kernels()[0]
        weights_dtype, input_dtype = self.dtypes(serial)
        threads = Threads(
            self.folded,
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
