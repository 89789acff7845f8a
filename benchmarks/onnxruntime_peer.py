"""ONNX Runtime, CPU provider, with input and output bound to buffers that stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

from benchmarks.data import Array, Data, aligned
from benchmarks.limits import EDGE
from benchmarks.onnx_model import conv_transpose, product
from benchmarks.runners import Prepared

__all__ = ["OnnxRuntime", "Sgemm"]


class OnnxRuntime:
    """All graph optimisations, one session a layer."""

    version = onnxruntime.__version__

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """A session with IO binding.

        Raises
        ------
        ValueError
            Its processor kernel is for float32 alone.
        """
        del artifact
        if data.work.dtype != "float32":
            raise ValueError(f"no ConvTranspose of {data.work.dtype} on processors")
        model = conv_transpose(data.work, data.kernel, data.bias)
        x = aligned(data.x.transpose(0, 4, 1, 2, 3))
        n, *size, filters = data.work.output_shape
        y = aligned(np.zeros((n, filters, *size), np.float32))
        call = _bound(model, x, y, self._threads)
        return Prepared(call, lambda: y.transpose(0, 2, 3, 4, 1))


class Sgemm:
    """The product of two square matrices, one of them packed beforehand, as weights are."""

    version = onnxruntime.__version__

    def __init__(self, threads: int) -> None:
        generator = np.random.default_rng(0)
        a, b = (generator.standard_normal((EDGE, EDGE), dtype=np.float32) for _ in range(2))
        self._call = _bound(product(b), aligned(a), aligned(np.zeros_like(a)), threads)

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """The same product for every layer."""
        del data, artifact
        return Prepared(self._call, lambda: None, 2 * EDGE**3)


def _bound(model: bytes, x: Array, y: Array, threads: int) -> Callable[[], None]:
    """A call of a model whose input and output stay where they are."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    binding = session.io_binding()
    # The binding holds addresses only: the arrays live as long as the function that is returned.
    kept = (x, y)
    for bind, name, array in zip(
        (binding.bind_input, binding.bind_output), ("x", "y"), kept, strict=True
    ):
        bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def call() -> None:
        assert kept
        session.run_with_iobinding(binding)

    return call
