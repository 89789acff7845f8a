"""Tensors of torch on CUDA devices by torch's own attributes, where somebody has loaded torch.

DLPack would do, but through torch it takes ten times as long as the rest of a call.
"""

from __future__ import annotations

import sys
from typing import Any

from tvmconv.errors import InputError

__all__ = ["current_stream", "dense_in", "torch_of"]


def torch_of(x: Any) -> Any | None:
    """The module torch, where ``x`` is a tensor of it."""
    torch = sys.modules.get("torch")
    return torch if torch is not None and isinstance(x, getattr(torch, "Tensor", ())) else None


def current_stream(torch: Any, device: int) -> int:
    """The driver's handle of torch's current stream on a device."""
    # What torch's own generated code asks; the stream object around the handle costs more than it.
    quick = getattr(getattr(torch, "_C", None), "_cuda_getCurrentRawStream", None)
    return int(quick(device) if quick else torch.cuda.current_stream(device).cuda_stream)


def dense_in(x: Any, torch: Any) -> tuple[int, tuple[int, ...], str, bool]:
    """Address, shape, dtype of a tensor, and whether it is dense in C order.

    Raises
    ------
    InputError
        It has a gradient, or is not strided.
    """
    if x.requires_grad:
        raise InputError("The array requires a gradient, which is not computed: give x.detach().")
    if x.layout != torch.strided:
        raise InputError(f"Expected a strided tensor. Received: layout={x.layout}")
    name = str(x.dtype).removeprefix("torch.")
    return int(x.data_ptr()), tuple(x.shape), name, bool(x.is_contiguous())
