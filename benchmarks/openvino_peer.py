"""OpenVINO, CPU, tuned for latency, in float32."""

from __future__ import annotations

from pathlib import Path

import openvino

from benchmarks.data import Array, Data, aligned
from benchmarks.onnx_model import conv_transpose
from benchmarks.runners import Prepared

__all__ = ["OpenVino"]


class OpenVino:
    """One stream, one request that keeps its tensors."""

    version = openvino.__version__.partition("-")[0]

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            # It would take bfloat16 where the processor has it: another computation.
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """A compiled model and its request."""
        del artifact
        model = self._core.read_model(conv_transpose(data.work, data.kernel, data.bias), b"")
        request = self._core.compile_model(model, "CPU", self._options).create_infer_request()
        x = aligned(data.x.transpose(0, 4, 1, 2, 3))
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def output() -> Array:
            # The request holds the address of ``x`` only, so this function keeps it alive.
            assert x.size
            found: Array = request.get_output_tensor().data.transpose(0, 2, 3, 4, 1)
            return found

        return Prepared(request.infer, output)
