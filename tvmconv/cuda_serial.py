"""CUDA kernels on this processor: how their numbers are checked where there is no device."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from tvmconv.config import numpy_dtype
from tvmconv.errors import BuildError
from tvmconv.runtime.call import address

if TYPE_CHECKING:
    from tvmconv.compute.cuda import CudaForm

__all__ = ["SerialLayer"]

#: Of a call that takes less time as the compiler leaves the code than making it fast would take.
_SMALL_FLOPS: Final = 1e7


class SerialLayer:
    """A layer on this processor from its CUDA kernels, every loop of them serial.

    Parameters
    ----------
    form
        The layer in the form that the kernels have.

    Raises
    ------
    BuildError
        The kernels cannot be compiled.
    """

    def __init__(self, form: CudaForm) -> None:
        from tvmconv import targets
        from tvmconv.codegen import lowering, toolchain

        self._form, self._kernels = form, form.kernels()
        self._packed = b""
        functions = {f"k{i}": one.emit(f"k{i}", True) for i, one in enumerate(self._kernels)}
        self._library: ctypes.CDLL | None = None
        if not functions:
            return
        work = form.work
        small = work.plan.flops * max(1, work.plan.batch) < _SMALL_FLOPS
        code = lowering.emit(functions, targets.native(), 0 if small else 3)
        with tempfile.TemporaryDirectory(prefix="tvmconv-cuda-") as folder:
            Path(folder, "serial.o").write_bytes(code.object_code())
            arguments = ["-shared", "-o", "serial.so", "serial.o", "-lm"]
            toolchain.find().run(arguments, Path(folder))
            try:
                self._library = ctypes.CDLL(str(Path(folder, "serial.so")))
            except OSError as exc:
                raise BuildError(f"the serial CUDA kernels cannot be loaded: {exc}") from exc

    def replace_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Set ``[kernel, bias]`` or ``[kernel]``, in Keras' layout."""
        self._packed = self._form.pack(weights[0], weights[1] if len(weights) > 1 else None)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The output for ``x``."""
        work = self._form.work
        batch = x.shape[0]
        y = np.empty((batch, *work.output_shape[1:]), numpy_dtype(work.output_dtype))
        packed, given = _aligned(self._packed), _aligned(x.tobytes())
        workspace = _aligned(b"\xff" * max((k.workspace_bytes for k in self._kernels), default=0))
        _, bias_offset, _ = self._form.packed_sizes
        places = {
            "input": address(given),
            "weights": address(packed),
            "bias": address(packed) + bias_offset,
            "output": address(y),
            "workspace": address(workspace),
        }
        for number, kernel in enumerate(self._kernels):
            values = [
                ctypes.c_int64(batch) if name == "batch" else ctypes.c_void_p(places[name])
                for name in kernel.arguments
            ]
            if batch and self._library is not None:
                self._library[f"k{number}"](*values)
        return y


def _aligned(content: bytes) -> np.ndarray:
    """A copy of bytes that is aligned as device memory is."""
    whole = np.empty(len(content) + 256, np.uint8)
    made = whole[-address(whole) % 256 :][: len(content)]
    made[:] = np.frombuffer(content, np.uint8)
    return made
