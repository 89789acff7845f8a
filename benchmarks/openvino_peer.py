"""OpenVINO, CPU, tuned for latency. Arrays are float32; inside they may be narrower."""

from __future__ import annotations

from pathlib import Path

import openvino

from benchmarks.data import Array, Data, aligned
from benchmarks.onnx_model import conv_transpose
from benchmarks.runners import Prepared

__all__ = ["OpenVino"]

_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


class OpenVino:
    """One stream, one request that keeps its tensors."""

    version = openvino.__version__.partition("-")[0]

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
        }

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """A compiled model and its request."""
        del artifact
        model = self._core.read_model(conv_transpose(data.work, data.kernel, data.bias), b"")
        # Unasked it would take bfloat16 where the processor has it: another computation.
        options = {**self._options, "INFERENCE_PRECISION_HINT": _HINTS[data.work.dtype]}
        request = self._core.compile_model(model, "CPU", options).create_infer_request()
        x = aligned(data.x.transpose(0, 4, 1, 2, 3))
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def output() -> Array:
            # The request holds the address of ``x`` only, so this function keeps it alive.
            assert x.size
            found: Array = request.get_output_tensor().data.transpose(0, 2, 3, 4, 1)
            return found

        return Prepared(request.infer, output)
