"""PyTorch, eager, in inference mode; contiguous and channels_last_3d memory.

PyTorch cuts the same number of voxels from both ends and adds ``output_padding`` behind. Where
Keras cuts more from the end, both input and kernel are mirrored, which is the same work; the output
is read backwards for the check. PyTorch wants ``output_padding`` below the stride; where that
forbids it, the voxels too many are computed and sliced off.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks.data import Array, Data, aligned
from benchmarks.runners import Prepared

__all__ = ["ChannelsLast", "Contiguous"]


class Contiguous:
    """Data in ``(n, c, d, h, w)`` order."""

    memory_format = torch.contiguous_format
    device = "cpu"
    #: None: the workload's.
    dtype: torch.dtype | None = None

    def __init__(self, threads: int) -> None:
        self.version = torch.__version__
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """A ``ConvTranspose3d`` module, its weights in the same memory format."""
        del artifact
        work, x, kernel = data.work, data.x, data.kernel
        cuts = []
        mirrored = [axis.lo < axis.hi < axis.lo + axis.stride for axis in work.axes]
        for dim, axis in enumerate(work.axes):
            if mirrored[dim]:
                x, kernel = np.flip(x, 1 + dim), np.flip(kernel, dim)
                cuts.append((axis.hi, axis.hi - axis.lo))
            else:
                cuts.append((axis.lo, max(axis.lo - axis.hi, 0)))
        module = torch.nn.ConvTranspose3d(
            work.in_channels,
            work.filters,
            work.kernel,
            work.strides,
            padding=tuple(padding for padding, _ in cuts),
            output_padding=tuple(extra for _, extra in cuts),
        )
        with torch.no_grad():
            weight = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
            module.weight.copy_(torch.from_numpy(weight))
            module.bias.copy_(torch.from_numpy(data.bias))
        dtype = self.dtype or getattr(torch, work.dtype)
        module = module.eval().to(self.device, dtype).to(memory_format=self.memory_format)
        moved = torch.from_numpy(aligned(x.transpose(0, 4, 1, 2, 3)))
        moved = moved.to(self.device, dtype).contiguous(memory_format=self.memory_format)
        relu = work.activation == "relu"
        last: list[torch.Tensor] = []

        depth, height, width = work.output_shape[1:4]

        def call() -> None:
            last.clear()
            with torch.inference_mode():
                y = module(moved)[:, :, :depth, :height, :width]
                last.append(y.relu_() if relu else y)

        def output() -> Array:
            y: Array = last[0].permute(0, 2, 3, 4, 1).float().cpu().numpy()
            for dim in range(3):
                if mirrored[dim]:
                    y = np.flip(y, 1 + dim)
            return y

        return Prepared(call, output)


class ChannelsLast(Contiguous):
    """Data in ``(n, d, h, w, c)`` order in memory."""

    memory_format = torch.channels_last_3d
