"""An array in a file, known by what it declares and read when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tvmconv.weights.refusal import refuse

__all__ = ["Tensor", "pair_problem"]

MAX_SIDE = 1 << 24
MAX_ELEMENTS = 1 << 31
KERNEL_RANK = 5


@dataclass(frozen=True)
class Tensor:
    """One stored array.

    Attributes
    ----------
    path
        Where it lies in the file, for messages.
    shape
        Declared shape; the data are checked against it when they are read.
    dtype
        ``"float16"``, ``"float32"``, ``"float64"``, ``"bfloat16"``, or ``"opaque16"``: 2 bytes
        that the file gives no name to, bfloat16 if the layer's policy says so.
    read
        Returns the array as stored (either byte order, bfloat16 as ``V2``).
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]

    def values(self, dtype: str, file: str) -> np.ndarray:
        """Read, and convert to ``dtype``: native byte order, contiguous, writeable.

        Equal types are carried over bit for bit, NaN payloads included.
        """
        raw = self.read()
        if raw.dtype == np.dtype("V2"):
            if self.dtype == "opaque16" and dtype != "bfloat16":
                raise refuse(
                    file, f"{self.path} holds 2-byte values of unknown type in a {dtype} layer"
                )
            import ml_dtypes

            raw = raw.view(np.dtype("<u2")).astype(np.uint16).view(ml_dtypes.bfloat16)
        if dtype == "bfloat16":
            import ml_dtypes

            wanted = np.dtype(ml_dtypes.bfloat16)
        else:
            wanted = np.dtype(dtype)
        # A value that is too large for the layer's type becomes an infinity, as in Keras.
        with np.errstate(over="ignore", invalid="ignore"):
            return np.array(raw, dtype=wanted, order="C", copy=True)


def pair_problem(kernel: Tensor, bias: Tensor | None) -> str | None:
    """Why two arrays cannot be kernel and bias of any layer; None if they can."""
    shape = kernel.shape
    if len(shape) != KERNEL_RANK:
        return f"the kernel {kernel.path} has shape {shape}, expected 5 dimensions"
    if min(shape) < 1 or max(shape) > MAX_SIDE:
        return f"the kernel {kernel.path} has shape {shape}, expected sizes from 1 to {MAX_SIDE}"
    elements = 1
    for side in shape:
        elements *= side
    if elements > MAX_ELEMENTS:
        return f"the kernel {kernel.path} has {elements} elements, at most {MAX_ELEMENTS} are read"
    if bias is not None and bias.shape != (shape[3],):
        return f"the bias {bias.path} has shape {bias.shape}, expected {(shape[3],)}"
    return None
