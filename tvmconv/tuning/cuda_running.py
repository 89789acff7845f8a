"""Running candidates on a CUDA device: what the runner process does. It loads no TVM.

Inputs, outputs and weights are on the device; calls are timed by the driver's events, many of them
as one graph where one is short. A kernel that faults may leave the process without a working
device: the answer says why, and whoever asked starts another process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmconv.compute.workload import Workload
from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.errors import ArtifactError, InputError
from tvmconv.runtime import cuda_driver
from tvmconv.runtime.call import address
from tvmconv.runtime.cuda import CudaLayer
from tvmconv.runtime.cuda_arrays import DeviceArray
from tvmconv.runtime.cuda_driver import DriverError
from tvmconv.runtime.cuda_events import Stopwatch
from tvmconv.tuning import running

__all__ = ["CudaBench"]

#: Seconds of work between two events, and before the first: a device that idled runs slowly.
_PIECE_S, _WARM_S = 2e-3, 10e-3
_MOST_CALLS = 1000
_LEAST_PIECES, _MOST_PIECES = 3, 64
_LAUNCH_TIMEOUT = 702

Call = Callable[[], None]


class CudaBench(running.Bench):
    """The layer that candidates compute, its input on the device, and what they should give."""

    def __init__(self) -> None:
        super().__init__()
        self._index = 0
        self._watch: Stopwatch
        self._given: DeviceArray
        self._made: DeviceArray

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Make the input; take the default's output from ``expected``, or compute and keep it."""
        return self._answered(self._prepare, request)

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of calls of the candidate in ``folder``, and its difference to the default."""
        return self._answered(self._time, request)

    def duel(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a call of each folder's candidate, in turns, on fresh inputs; by round."""
        return self._answered(self._duel, request)

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Largest error of each folder's candidate against the reference, on the whole layer."""
        return self._answered(self._check, request)

    @staticmethod
    def _answered(
        work: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]
    ) -> dict[str, Any]:
        """What was found, or a ``failure``: reason and detail as in `records.Failure`."""
        try:
            return work(request)
        except DriverError as exc:
            reason = "crash" if exc.code in cuda_driver.FAULTS else "run"
            reason = "timeout" if exc.code == _LAUNCH_TIMEOUT else reason
            return {"failure": [reason, str(exc)]}
        except InputError as exc:
            reason = "memory" if "not enough" in str(exc) else "run"
            return {"failure": [reason, str(exc)]}
        except ArtifactError as exc:
            return {"failure": ["run", str(exc)]}

    def _prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        self._config = LayerConfig.from_keras(request["config"])
        self._work = Workload.of(self._config, request["shape"])
        self._index = request["device"]
        device = cuda_driver.device(self._index)
        self._watch = Stopwatch(device)
        self._given = self._uploaded(self._input(request["seed"]))
        dtype = numpy_dtype(self._work.output_dtype)
        shape = (max(1, self._work.plan.batch), *self._work.output_shape[1:])
        self._out = np.empty(shape, dtype)
        self._made = DeviceArray(device.allocate(self._out.nbytes), shape, dtype, 0)
        path = Path(request["expected"])
        if not path.exists():
            running.keep(path, self._output(self._ready(request["default"], self._given)))
        self._expected = np.load(path, mmap_mode="r").view(dtype)
        return {}

    def _time(self, request: dict[str, Any]) -> dict[str, Any]:
        call = self._ready(request["folder"], self._given)
        difference = self._difference(self._output(call), self._expected)
        watch = self._watch
        first = watch.seconds(call)
        best = request.get("best")
        if best is not None and first > 2 * running.HOPELESS * best:
            return {"seconds": [round(first, 12)], "difference": difference}
        calls = _calls(first, _PIECE_S)
        piece = watch.repeated(call, calls)
        for _ in range(_calls(first * calls, _WARM_S)):
            watch.seconds(piece)
        found: list[float] = []
        spent, end = 0.0, time.perf_counter() + 10 * request["seconds"]
        while len(found) < _MOST_PIECES:
            found.append(watch.seconds(piece) / calls)
            spent += found[-1] * calls
            if best is not None and found[0] > running.HOPELESS * best:
                break
            over = spent >= request["seconds"] or time.perf_counter() >= end
            if len(found) >= _LEAST_PIECES and over:
                break
        return {"seconds": running.few(found), "difference": difference}

    def _duel(self, request: dict[str, Any]) -> dict[str, Any]:
        fresh = self._uploaded(self._input(request["seed"]))
        calls = [self._ready(folder, fresh) for folder in request["folders"]]
        for call in calls:  # a first call loads the code, which no capture may do
            call()
        watch, count = self._watch, _calls(request["call"], min(_PIECE_S, request["slice"]))
        pieces = [watch.repeated(call, count) for call in calls]
        order = list(range(len(calls)))
        rng = np.random.default_rng(request["seed"])
        rounds: list[list[float]] = []
        spent, end = 0.0, time.perf_counter() + 10 * request["seconds"]
        for _ in range(_calls(request["call"] * count, _WARM_S)):
            watch.seconds(pieces[0])
        while len(rounds) < request["most"]:
            row = [0.0] * len(calls)
            rng.shuffle(order)
            for at in order:
                calls[at]()  # its code and weights into the caches
                row[at] = watch.seconds(pieces[at]) / count
            rounds.append(row)
            spent += sum(row) * count
            over = spent >= request["seconds"] or time.perf_counter() >= end
            if len(rounds) >= request["least"] and over:
                break
        return {"rounds": rounds}

    def _check(self, request: dict[str, Any]) -> dict[str, Any]:
        from tvmconv import reference
        from tvmconv.tuning import building

        kernel, *bias = building.weights(self._config, self._work, 0)
        x = self._input(request["seed"])
        expected = reference.conv3d_transpose(self._config, x, kernel, bias[0] if bias else None)
        given = self._uploaded(x)
        outputs = (self._output(self._ready(folder, given)) for folder in request["folders"])
        return {"errors": [self._difference(y, expected) for y in outputs]}

    def _uploaded(self, x: np.ndarray) -> DeviceArray:
        device = cuda_driver.device(self._index)
        made = DeviceArray(device.allocate(x.nbytes), x.shape, x.dtype, 0)
        if x.nbytes:
            device.upload(made.pointer, address(x), x.nbytes, self._watch.stream)
        return made

    def _ready(self, folder: str, x: DeviceArray) -> Call:
        """A call of the candidate in a folder, its code and weights on the device."""
        layer = running.load(folder, self._index)
        assert isinstance(layer, CudaLayer)
        return layer.prepared(x, self._made, self._watch.stream)

    def _output(self, call: Call) -> np.ndarray:
        """What one call writes over memory full of NaN; the same array for every call."""
        device = cuda_driver.device(self._index)
        self._out.fill(np.nan)
        size = self._out.nbytes
        if size:
            device.upload(self._made.pointer, address(self._out), size, self._watch.stream)
        call()
        if size:
            device.download(address(self._out), self._made.pointer, size, self._watch.stream)
        return self._out


def _calls(each_s: float, all_s: float) -> int:
    """So many calls of ``each_s`` seconds take ``all_s``."""
    return max(1, min(_MOST_CALLS, round(all_s / max(each_s, 1e-7))))


def handlers() -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
    """What the worker process answers."""
    bench = CudaBench()
    names: Sequence[str] = ("prepare", "time", "duel", "check")
    return {name: getattr(bench, name) for name in names}
