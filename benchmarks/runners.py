"""Everything that is timed, by name.

A runner lives in a process of its own, for one number of threads. It is made once, `prepare` is
called for each layer, and the function that `prepare` returns is what is timed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.data import Array, Data

__all__ = [
    "DEFAULT_PEERS", "LIMITS", "PEERS", "Entry", "Prepared", "Runner", "algorithm_of", "make",
    "ours",
]  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """A call that can be timed.

    Attributes
    ----------
    call
        Computes the layer once, or does the work of a limit once; complete when it returns.
    output
        The result of the last call as ``(batch, d, h, w, filters)``, or None where there is nothing
        to check.
    amount
        Floating-point operations or bytes of one call; 0: the layer's own.
    """

    call: Callable[[], Any]
    output: Callable[[], Array | None]
    amount: int = 0


class Runner(Protocol):
    """One way to compute a layer, with a fixed number of threads."""

    version: str

    def prepare(self, data: Data, artifact: Path | None) -> Prepared:
        """Get a layer ready; ``artifact`` is the folder that tvmconv compiled for it, if any."""


@dataclass(frozen=True)
class Entry:
    """Where a runner's class is, what its row is called, and the module that must be installed."""

    title: str
    home: str
    needs: str


PEERS = {
    "torch": Entry("torch", "torch_peer:Contiguous", "torch"),
    "torch_channels_last": Entry("torch channels_last_3d", "torch_peer:ChannelsLast", "torch"),
    "onnxruntime": Entry("ONNX Runtime", "onnxruntime_peer:OnnxRuntime", "onnxruntime"),
    "openvino": Entry("OpenVINO", "openvino_peer:OpenVino", "openvino"),
    "keras": Entry("Keras on TensorFlow", "keras_peer:Keras", "tensorflow"),
    "keras_xla": Entry("Keras on TensorFlow, XLA", "keras_peer:KerasXla", "tensorflow"),
    "tvm": Entry("TVM's own operator", "tvm_peer:StockTvm", "tvm"),
}
LIMITS = {
    "sgemm_numpy": Entry("sgemm of NumPy's BLAS", "limits:NumpySgemm", "numpy"),
    "sgemm_torch": Entry("sgemm of torch.mm", "limits:TorchSgemm", "torch"),
    "sgemm_onnxruntime": Entry("sgemm of ONNX Runtime", "onnxruntime_peer:Sgemm", "onnxruntime"),
    "copy": Entry("copy", "limits:Copy", "numpy"),
    "fill": Entry("streaming fill", "limits:Fill", "numpy"),
}
DEFAULT_PEERS = ("torch", "torch_channels_last", "onnxruntime", "openvino", "keras")


def ours(algorithms: list[str]) -> dict[str, Entry]:
    """The runners of tvmconv: each algorithm into a kept array, the first also into a new one."""
    found = {}
    for algorithm in algorithms:
        name = "tvmconv" if algorithm == "auto" else f"tvmconv_{algorithm}"
        title = "tvmconv" if algorithm == "auto" else f"tvmconv {algorithm}"
        found[name] = Entry(title, f"tvmconv_runner:Into@{algorithm}", "tvmconv")
    first = next(iter(found))
    title, algorithm = found[first].title, algorithms[0]
    found[f"{first}_new"] = Entry(
        f"{title}, new output", f"tvmconv_runner:New@{algorithm}", "tvmconv"
    )
    return found


def algorithm_of(entry: Entry) -> str:
    """Which algorithm a runner of tvmconv needs compiled; empty for the others."""
    return entry.home.partition("@")[2]


def make(home: str, threads: int) -> Runner:
    """The runner at ``module:Class``.

    Raises
    ------
    ImportError
        Its framework is not installed.
    """
    module, _, rest = home.partition(":")
    cls = getattr(importlib.import_module(f"benchmarks.{module}"), rest.partition("@")[0])
    runner: Runner = cls(threads)
    return runner
