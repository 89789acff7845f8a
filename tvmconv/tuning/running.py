"""Running candidates: what the runner process does. It loads no TVM.

A candidate writes into memory full of NaN and is compared with what the default computed, so that a
missing output shows as well as a wrong one.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.runtime.outputs import Outputs

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.runtime.library import CompiledLayer

__all__ = ["HOPELESS", "TOLERANCE", "Bench", "few", "keep", "load"]

#: Largest difference to the default or the reference, relative to the largest value where that is
#: above 1; as in the check of every build.
TOLERANCE = {"tf32": 2e-3, "float32": 1e-4, "float64": 1e-6, "float16": 8e-3, "bfloat16": 6e-2}
_LEAST_CALLS, _MOST_CALLS, _KEPT = 3, 3000, 8
#: A candidate that takes so many times as long as the best is not measured again.
HOPELESS = 3.0
_SIDE = 768


class Bench:
    """The layer that candidates compute, its input, and what they should give."""

    def __init__(self) -> None:
        self._config: LayerConfig
        self._work: Workload
        self._x: np.ndarray
        self._expected: np.ndarray
        self._out: np.ndarray

    def limit(self, request: dict[str, Any]) -> dict[str, Any]:
        """1e9 operations a second of a matrix product on one core; null where it is not known."""
        del request
        from tvmconv import measure

        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
        c = np.empty_like(a)
        with measure._one_blas_thread() as alone:
            if not alone:
                return {"gflops": None}
            times = [_time(lambda: np.matmul(a, b, out=c)) for _ in range(12)]
        return {"gflops": 2 * _SIDE**3 / min(times) / 1e9}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make the input; take the default's output from ``expected``, or compute and keep it."""
        from tvmconv.compute.workload import Workload

        self._config = LayerConfig.from_keras(request["config"])
        self._work = Workload.of(self._config, request["shape"])
        self._x = self._input(request["seed"])
        path = Path(request["expected"])
        if not path.exists():
            keep(path, load(request["default"])(self._x))
        dtype = numpy_dtype(self._work.output_dtype)
        self._expected = np.load(path, mmap_mode="r").view(dtype)
        self._out = Outputs().empty(self._expected.shape, dtype)
        return {}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of calls of the candidate in ``folder``, and its difference to the default."""
        layer = load(request["folder"])
        self._out.fill(np.nan)
        first = _time(lambda: layer(self._x, out=self._out))
        difference = self._difference(self._out, self._expected)
        seconds: list[float] = []
        best = request.get("best")
        if best is None or first < HOPELESS * 2 * best:
            end = time.perf_counter() + request["seconds"]
            while len(seconds) < _MOST_CALLS:
                seconds.append(_time(lambda: layer(self._x, out=self._out)))
                if best is not None and seconds[0] > HOPELESS * best:
                    break
                if len(seconds) >= _LEAST_CALLS and time.perf_counter() >= end:
                    break
        return {"seconds": few(seconds or [first]), "difference": difference}

    def duel(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a call of each folder's candidate, in turns, on fresh inputs; by round."""
        layers = [load(folder) for folder in request["folders"]]
        x = self._input(request["seed"])
        calls = max(1, min(200, int(request["slice"] / max(1e-6, request["call"]))))
        order = list(range(len(layers)))
        rng = np.random.default_rng(request["seed"])
        for layer in layers:
            layer(x, out=self._out)
        rounds: list[list[float]] = []
        end = time.perf_counter() + request["seconds"]
        while len(rounds) < request["least"] or time.perf_counter() < end:
            row = [0.0] * len(layers)
            rng.shuffle(order)
            for at in order:
                layer = layers[at]
                layer(x, out=self._out)  # its code and weights into the caches
                row[at] = statistics.median(
                    _time(lambda: layer(x, out=self._out))  # noqa: B023
                    for _ in range(calls)
                )
            rounds.append(row)
            if len(rounds) >= request["most"]:
                break
        return {"rounds": rounds}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Largest error of each folder's candidate against the reference, on the whole layer."""
        from tvmconv import reference
        from tvmconv.tuning import building

        kernel, *bias = building.weights(self._config, self._work, 0)
        x = self._input(request["seed"])
        expected = reference.conv3d_transpose(self._config, x, kernel, bias[0] if bias else None)
        errors = []
        for folder in request["folders"]:
            self._out.fill(np.nan)
            load(folder)(x, out=self._out)
            errors.append(self._difference(self._out, expected))
        return {"errors": errors}

    def _input(self, seed: int) -> np.ndarray:
        shape = (max(1, self._work.plan.batch), *self._work.plan.input_shape[1:])
        drawn = np.random.default_rng([seed, 2]).standard_normal(shape, np.float32)
        return drawn.astype(numpy_dtype(self._work.input_dtype), copy=False)

    @staticmethod
    def _difference(found: np.ndarray, expected: np.ndarray) -> float | None:
        """Relative to the largest value where that is above 1; None where something is not finite.

        Plane by plane: a copy of a large output in float64 might not fit.
        """
        scale, largest = 1.0, 0.0
        for a, b in zip(found, expected, strict=True):
            for mine, theirs in zip(a, b, strict=True):
                wanted = np.asarray(theirs, np.float64)
                if wanted.size:
                    scale = max(scale, float(np.max(np.abs(wanted))))
                    worst = float(np.max(np.abs(np.asarray(mine, np.float64) - wanted)))
                    if not np.isfinite(worst):
                        return None
                    largest = max(largest, worst)
        return largest / scale


def load(folder: str, device: int | None = None) -> CompiledLayer:
    """The candidate in a folder, with its packed weights; a CUDA device where it is for one."""
    from tvmconv.runtime import library
    from tvmconv.tuning.building import PACKED

    layer = library.load(folder, device=device)
    blob = layer._blob()
    blob[:] = np.load(Path(folder) / PACKED).view(np.uint8)
    layer._packed = blob
    return layer


def keep(path: Path, y: np.ndarray) -> None:
    """Write an output to a file, whole or not at all; of numbers of 16 bits their bits."""
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, y.view(np.uint16) if y.dtype.itemsize == 2 else y)
    partial.rename(path)


def _time(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def few(seconds: list[float]) -> list[float]:
    """Medians of consecutive calls: a number that a record can hold."""
    size = -(-len(seconds) // _KEPT)
    parts = [seconds[at : at + size] for at in range(0, len(seconds), size)]
    return [round(statistics.median(part), 9) for part in parts]
