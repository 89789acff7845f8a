"""How fast an artifact is on this machine, beside the matrix product of one of its cores."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmconv.artifact import Artifact
from tvmconv.config import numpy_dtype
from tvmconv.errors import ConfigError
from tvmconv.runtime import library
from tvmconv.runtime.library import CompiledLayer

__all__ = ["Measurement", "bench"]

_SIDE = 1024
_ROUNDS = 10
_WARM_UP_CALLS = 3
#: What the BLAS libraries that NumPy is built with call the function that limits their threads.
_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)
#: Microseconds that a control group may compute, in a period: "200000 100000" are two cores.
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_BLAS_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Measurement:
    """The time of one layer on one input shape.

    Attributes
    ----------
    name, input_shape
        The artifact, and the shape that was timed (batch 1 where it is open).
    threads
        How many threads a call could use.
    calls
        How many calls were timed.
    median_s, fastest_s, slowest_s, p10_s, p90_s, spread
        Seconds of a call; 10 % of the calls took at most p10_s, 90 % at most p90_s, and the spread
        is the distance of the two over the median.
    gflops
        Useful operations (2 for each product of an input and a kernel value) in 1e9 a second, from
        the median.
    gemm_gflops, gemm_dtype
        The same figure for NumPy's product of two square matrices on one core, measured between the
        calls; None where its BLAS library cannot be held to one thread.
    share
        gflops / (threads * gemm_gflops), or None. On a CUDA device there is neither: the arrays are
        there, and a call ends when the device has computed it.
    load
        The machine's load average before the measurement: above 0 others took part of it.
    processor
        Whose code ran, where the library holds code for several; else empty.
    """

    name: str
    input_shape: tuple[int, ...]
    threads: int
    calls: int
    median_s: float
    fastest_s: float
    slowest_s: float
    p10_s: float
    p90_s: float
    spread: float
    gflops: float
    gemm_gflops: float | None
    gemm_dtype: str
    share: float | None
    load: float
    processor: str = ""


def bench(
    source: str | Path | Artifact | CompiledLayer,
    *,
    threads: int | Sequence[int | None] | None = None,
    seconds: float = 2.0,
    progress: Callable[[str], None] | None = None,
) -> list[Measurement]:
    """Time a compiled layer on each of its input shapes, with random numbers.

    ``bench(path, threads=(1, 0))`` compares one thread with as many as a call takes by itself.

    Calls and matrix products take turns, so that both see the same clock and the same neighbours.

    Parameters
    ----------
    source
        An artifact's path, or what `tvmconv.compile` or `tvmconv.load` returned.
    threads
        Threads of a call, or several numbers, each of which is timed; 0 for what the artifact was
        compiled with, None for what the layer was loaded with.
    seconds
        How long each input shape is timed with each number of threads, above 0.
    progress
        Called with the name of each step.

    Raises
    ------
    ArtifactError
        The artifact cannot be loaded.
    ConfigError
        ``seconds`` or ``threads`` is out of range.
    """
    if not 0 < seconds < 1e6:
        raise ConfigError(f"Expected seconds above 0. Received: seconds={seconds}")
    if isinstance(source, CompiledLayer):
        layer = source
    else:
        layer = library.load(source.library if isinstance(source, Artifact) else source)
    numbers = tuple(threads) if isinstance(threads, Sequence) else (threads,)
    layers = [layer.with_threads(layer.threads if n is None else n) for n in numbers]
    if not layer.has_weights:
        for one in layers:
            _draw_weights(one)
    results = []
    for index, shape in enumerate(layer.input_shapes):
        for one in layers:
            if progress is not None:
                progress(f"timing {layer.name} on {shape} for {seconds:g} s")
            results.append(_measure(one, index, seconds))
    return results


def _measure(layer: CompiledLayer, index: int, seconds: float) -> Measurement:
    shape = tuple(1 if size is None else size for size in layer.input_shapes[index])
    manifest = layer.manifest
    rng = np.random.default_rng(7)
    x = rng.standard_normal(shape, np.float32).astype(numpy_dtype(manifest.input_dtype))
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    dtype = np.float64 if manifest.input_dtype == "float64" else np.float32
    a, b = (rng.standard_normal((_SIDE, _SIDE)).astype(dtype) for _ in range(2))
    c = np.empty_like(a)
    call = layer.repeatable(x)
    for _ in range(_WARM_UP_CALLS):
        call()
    times: list[float] = []
    products: list[float] = []
    with _one_blas_thread() as alone:
        for _ in range(_ROUNDS):
            if alone and not layer.on_gpu:
                products.append(_time(lambda: np.matmul(a, b, out=c)))
            end = time.perf_counter() + seconds / _ROUNDS
            while True:
                times.append(_time(call))
                if time.perf_counter() >= end:
                    break
    median = statistics.median(times)
    gflops = manifest.flops[index] * shape[0] / median / 1e9
    # The fastest product is what the core can do; a disturbed one would flatter the layer.
    gemm = 2 * _SIDE**3 / min(products) / 1e9 if products else None
    threads = layer.threads or manifest.threads or _usable_cores()
    p10, p90 = (float(value) for value in np.quantile(times, (0.1, 0.9)))
    return Measurement(
        name=layer.name,
        input_shape=shape,
        threads=threads,
        calls=len(times),
        median_s=median,
        fastest_s=min(times),
        slowest_s=max(times),
        p10_s=p10,
        p90_s=p90,
        spread=(p90 - p10) / median,
        gflops=gflops,
        gemm_gflops=gemm,
        gemm_dtype=np.dtype(dtype).name,
        share=None if gemm is None else gflops / (threads * gemm),
        load=load,
        processor=layer.processor if manifest.several and not layer.on_gpu else "",
    )


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _usable_cores() -> int:
    """The cores that a call takes by itself, as the library counts them."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no control group, or no limit: "max 100000"
        return cores


def _draw_weights(layer: CompiledLayer) -> None:
    rng = np.random.default_rng(8)
    config = layer.config
    channels = layer.input_shape[config.channel_axis]
    shapes = config.weight_shapes(channels)
    fan = max(1, int(np.prod(shapes[0][:3])) * shapes[0][4])
    layer.set_weights([rng.standard_normal(shape) / fan**0.5 for shape in shapes])


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[bool]:
    """Hold NumPy's matrix product to one thread; yields whether that is so."""
    if any(os.environ.get(name) == "1" for name in _BLAS_VARIABLES) or _usable_cores() == 1:
        yield True
        return
    setter, getter = _blas_functions()
    if setter is None or getter is None:
        yield False
        return
    before = int(getter())
    setter(1)
    try:
        yield True
    finally:
        setter(before)


def _blas_functions() -> tuple[Any, Any]:
    """What sets and gets the number of threads in the BLAS library that NumPy has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None, None
    files = set(re.findall(r"/\S*(?:blas|mkl_rt)\S*\.so\S*", maps))
    for file in sorted(files):
        try:
            blas = ctypes.CDLL(file)
        except OSError:
            continue
        for name in _SETTERS:
            setter = getattr(blas, name, None)
            getter = getattr(
                blas, name.replace("_set_", "_get_").replace("Set_Num", "Get_Max"), None
            )
            if setter is not None and getter is not None:
                return setter, getter
    return None, None
