"""Layers on a CUDA device, beside PyTorch's cuDNN: ``python -m benchmarks.cuda``.

Both get the same numbers on the device, run on the same stream, and take turns; a turn is some
calls between two of CUDA's events. PyTorch runs with cuDNN's own search in both memory layouts, and
its faster one counts. TF32 is off. This program has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import tvmconv
from benchmarks.data import Data
from benchmarks.tvmconv_runner import layer_of
from benchmarks.workloads import QUICK, Workload, named
from tvmconv.runtime import cuda_driver

__all__ = ["main"]

_ROUNDS = 10
_TURN_MS = 50.0


def main(arguments: list[str] | None = None) -> int:
    """Time the layers; print a row for each, and the geometric mean of the ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda")
    parser.add_argument("--layers", default=",".join(QUICK), help="names, separated by commas")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--target", default="cuda:native")
    asked = parser.parse_args(arguments)
    try:
        works = named(asked.layers.split(","))
    except ValueError as exc:
        parser.error(str(exc))
    reason = _reason()
    if reason:
        sys.stderr.write(f"benchmarks.cuda: error: nothing can be timed here: {reason}\n")
        return 2
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {asked.dtype}")
    print(
        f"{'layer':<14}{'tvmconv us':>12}{'torch us':>12}{'ratio':>8}{'TFLOP/s':>10}{'error':>10}"
    )
    ratios = []
    for work in works:
        ours, theirs, error = _measure(work, asked.dtype, asked.target)
        ratios.append(theirs / ours)
        speed = work.flops / ours / 1e6
        row = f"{work.name:<14}{ours:>12.1f}{theirs:>12.1f}{ratios[-1]:>8.2f}{speed:>10.2f}"
        print(f"{row}{error:>10.1e}", flush=True)
    print(f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.2f}")
    return 0


def _reason() -> str:
    """Why nothing can be timed here; empty if something can."""
    reason = cuda_driver.unavailable()
    if reason:
        return reason
    try:
        import torch
    except ImportError:
        return "PyTorch is not installed"
    return "" if torch.cuda.is_available() else "this PyTorch is built without CUDA"


def _measure(work: Workload, dtype: str, target: str) -> tuple[float, float, float]:
    """Microseconds of a call, ours and PyTorch's, and our largest error at sampled voxels."""
    import torch

    from benchmarks import torch_peer

    kind = getattr(torch, dtype)
    data = Data(work)
    config = {**layer_of(work).get_config(), "dtype": dtype}
    layer = tvmconv.Conv3DTranspose.from_config(config)
    layer.build(work.input_shape)
    layer.set_weights([data.kernel, data.bias])
    with tempfile.TemporaryDirectory() as folder:
        artifact = tvmconv.compile(layer, work.input_shape, target=target, output=folder)
        ours: Any = artifact.load()
    x = torch.from_numpy(data.x).to("cuda", kind)
    y = torch.empty(work.output_shape, dtype=kind, device="cuda")
    calls: list[Callable[[], Any]] = [lambda: ours(x, out=y)]
    for peer in (torch_peer.Contiguous, torch_peer.ChannelsLast):
        runner = peer(1)
        runner.device, runner.dtype = "cuda", kind
        calls.append(runner.prepare(data, None).call)
    counts = [_count(call) for call in calls]
    turns: list[list[float]] = [[] for _ in calls]
    for _ in range(_ROUNDS):
        for times, call, count in zip(turns, calls, counts, strict=True):
            times.append(_turn(call, count))
    medians = [statistics.median(times) for times in turns]
    return medians[0], min(medians[1:]), data.error(y.float().cpu().numpy())


def _count(call: Callable[[], Any]) -> int:
    """Calls of a turn. The first calls search, load and warm up."""
    for _ in range(3):
        call()
    return max(1, round(1000 * _TURN_MS / max(1.0, _turn(call, 3))))


def _turn(call: Callable[[], Any], count: int) -> float:
    """Microseconds of a call."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return 1000 * float(start.elapsed_time(end)) / count


if __name__ == "__main__":
    sys.exit(main())
