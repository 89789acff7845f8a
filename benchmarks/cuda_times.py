"""Times on a CUDA device by graphs and events, through torch; see `benchmarks.cuda`."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tvmconv
from benchmarks.cuda import element
from benchmarks.data import Data
from benchmarks.torch_peer import Contiguous
from benchmarks.workloads import Workload
from tvmconv.config import numpy_dtype

__all__ = ["graph_time", "peaks", "rows"]

_ROUNDS = 7
_TURN_US = 3000.0
_MOST_CALLS = 200
_SIDE = 8192
_COPIED = 1 << 30


def peaks() -> dict[str, Any]:
    """What the device reaches: matrix products by dtype, in TFLOP/s, and a copy, in GB/s."""
    tflops = {}
    for name in ("float32", "tf32", "float16", "bfloat16"):
        kind = torch.float32 if name == "tf32" else getattr(torch, name)
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        left, right = (torch.randn(_SIDE, _SIDE, device="cuda").to(kind) for _ in range(2))
        # Until the clocks are up.
        for _ in range(2):
            time = graph_time(lambda left=left, right=right: torch.mm(left, right))
        tflops[name] = 2 * _SIDE**3 / time / 1e6
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randn(_COPIED // 4, device="cuda")
    to = torch.empty_like(source)
    time = graph_time(lambda: to.copy_(source))
    return {"tflops": tflops, "copy_gbs": 2 * _COPIED / time / 1e3}


def graph_time(call: Callable[[], Any]) -> float:
    """Microseconds of the device for one call: the median of replays of a graph of many."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # The first calls search, load and warm up.
            call()
        stream.synchronize()
        once = max(1.0, _between(call))
    count = max(1, min(_MOST_CALLS, round(_TURN_US / once)))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    graph.replay()
    torch.cuda.synchronize()
    return statistics.median(_between(graph.replay) for _ in range(_ROUNDS)) / count


def _between(call: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1000 * float(start.elapsed_time(end))


def rows(work: Workload, dtypes: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """A row of figures for each dtype of a layer; its artifacts are ``folder/LAYER-DTYPE``."""
    torch.backends.cudnn.benchmark = True
    data = Data(work)
    peer = Contiguous.__new__(Contiguous)
    peer.device, peer.dtype = "cuda", torch.float32
    prepared = peer.prepare(data, None)
    for kind in dtypes:
        if kind == "toom-cook" and not (folder / f"{work.name}-{kind}").exists():
            continue  # it does not serve the layer
        dtype = element(kind)
        ours, error, form = _ours(data, folder / f"{work.name}-{kind}", dtype)
        theirs = _peer(prepared.call, work, dtype, tf32=kind == "tf32")
        row = {
            "layer": work.name, "dtype": kind, "form": form, "us": ours, "torch_us": theirs,
            "ratio": theirs / ours, "error": error, "flops": work.flops,
            "bytes": work.traffic * numpy_dtype(dtype).itemsize // 4,
        }  # fmt: skip
        if kind == "float32":
            row["torch_tf32_us"] = _peer(prepared.call, work, dtype, tf32=True)
        yield row


def _ours(data: Data, folder: Path, dtype: str) -> tuple[float, float, str]:
    """Microseconds of a call, the largest error at sampled voxels, and the kernel's form."""
    work, kind = data.work, getattr(torch, dtype)
    layer: Any = tvmconv.load(folder)
    narrow = numpy_dtype(dtype)
    layer.set_weights([data.kernel.astype(narrow), data.bias.astype(narrow)])
    x = torch.from_numpy(data.x).to("cuda", kind)
    y = torch.full(work.output_shape, float("nan"), dtype=kind, device="cuda")
    time = graph_time(lambda: layer(x, out=y))
    form = layer.manifest.target["cuda"]["decisions"][0]["form"]
    return time, _error(data, y), str(form)


def _error(data: Data, y: torch.Tensor) -> float:
    """As `Data.error`, without the whole output in host memory."""
    values, sizes = data.expected
    places = torch.tensor(data.voxels, device="cuda").T
    got = y[places[0], places[1], places[2], places[3]].double().cpu().numpy()
    return float(np.nan_to_num(np.abs(got - values) / sizes, nan=np.inf).max())


def _peer(prepared: Callable[[], Any], work: Workload, dtype: str, *, tf32: bool) -> float:
    """Microseconds of PyTorch, in the faster of its layouts."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    kept = dict(zip(prepared.__code__.co_freevars, prepared.__closure__ or (), strict=True))
    module, x = kept["module"].cell_contents, kept["moved"].cell_contents
    depth, height, width = work.output_shape[1:4]
    found = []
    for layout in (torch.channels_last_3d, torch.contiguous_format):
        kind = getattr(torch, dtype)
        theirs = copy.deepcopy(module).to(kind).to(memory_format=layout)
        moved = x.to(kind).contiguous(memory_format=layout)

        def call(theirs: Any = theirs, moved: Any = moved) -> Any:
            with torch.inference_mode():
                y = theirs(moved)[:, :, :depth, :height, :width]
                return y.relu_() if work.activation == "relu" else y

        found.append(graph_time(call))
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return min(found)
