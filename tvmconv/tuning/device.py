"""Running candidates on a device behind TVM's RPC: what the process that holds the session does.

The layer runs in a process of its own on the device (`codegen/c/device.c`), so that a candidate
that crashes, hangs or takes too much memory is an answer like others. An exception here means that
the device, or the way to it, is lost.
"""

from __future__ import annotations

import hashlib
import signal
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.tuning import building, running, worker

__all__ = ["Device", "main"]

#: Output elements that are compared; of larger outputs so many are drawn.
_PLACES = 1 << 15
_CALLS = 3000
#: The order of `spec` and of the states in device.c.
_SPEC = (
    "threads", "least", "calls", "budget_us", "hopeless_ns", "timeout_ms", "memory", "output_bytes",
)  # fmt: skip
_DONE, _RETURNED, _TIMEOUT, _SIGNAL, _NO_MEMORY = range(5)
_FOUND = 3


def main() -> int:
    """Serve the requests of one device's slot."""
    device = Device()
    return worker.serve(
        {
            "connect": device.connect,
            "prepare": device.prepare,
            "time": device.time,
            "duel": device.duel,
            "check": device.check,
        }
    )


class Device(running.Bench):
    """A session on a device, and the layer that candidates compute there."""

    def __init__(self) -> None:
        super().__init__()
        self._session: Any = None
        self._remote: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}
        self._memory = 0
        self._timeout_s = 0.0
        self._triple = ""

    def connect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take a device from the tracker and open a session on it."""
        from tvm import rpc

        host, port, key = request["host"], request["port"], request["key"]
        with socket.create_connection((host, port), request["seconds"]) as tracker:
            _greet(tracker)
            address, at, match = _asked(tracker, [rpc.base.TrackerCode.REQUEST, key, "", 1])
            self._session = rpc.connect(address, at, match)
        self._remote, self._functions = {}, {}
        return {"device": f"{address}:{at}"}

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send the input, and take what the default computes as what others should."""
        from tvmconv.compute.workload import Workload

        self._config = LayerConfig.from_keras(request["config"])
        self._work = Workload.of(self._config, request["shape"])
        self._memory, self._timeout_s = request["memory"], request["timeout"]
        self._triple = request["triple"]
        self._remote = {}
        self._send("input", self._input(request["seed"]))
        self._send("places", self._places())
        answer = self._measure(request["default"], "input", "places", least=1, calls=1)
        if "failure" not in answer:
            self._expected = answer.pop("values")
        return answer

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of calls of the candidate in ``folder``, and its difference to the default."""
        best = request.get("best")
        answer = self._measure(
            request["folder"],
            "input",
            "places",
            least=3,
            calls=_CALLS,
            budget_us=round(1e6 * request["seconds"]),
            hopeless_ns=round(3e9 * best) if best else 0,
        )
        if "failure" in answer:
            return answer
        shape = (1, 1, -1)
        found, expected = answer["values"].reshape(shape), self._expected.reshape(shape)
        difference = self._difference(found, expected)
        return {"seconds": running._few(answer["seconds"]), "difference": difference}

    def duel(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a call of each folder's candidate, in turns, on fresh inputs; by round."""
        self._send("fresh", self._input(request["seed"]))
        self._send("nowhere", np.zeros(1, np.int64))
        order = list(range(len(request["folders"])))
        rng = np.random.default_rng(request["seed"])
        calls = max(3, min(200, int(request["slice"] / max(1e-6, request["call"]))))
        rounds = []
        for _ in range(request["most"]):
            row = [0.0] * len(order)
            rng.shuffle(order)
            for at in order:
                folder = request["folders"][at]
                answer = self._measure(folder, "fresh", "nowhere", least=calls, calls=calls)
                if "failure" in answer:
                    return answer
                row[at] = float(np.median(answer["seconds"]))
            rounds.append(row)
        return {"rounds": rounds}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Largest error of each folder's candidate against the reference, on the whole layer."""
        from tvmconv import reference

        kernel, *bias = building.weights(self._config, self._work, 0)
        x = self._input(request["seed"])
        expected = reference.conv3d_transpose(self._config, x, kernel, bias[0] if bias else None)
        self._send("fresh", x)
        self._send("everywhere", np.arange(expected.size, dtype=np.int64))
        errors = []
        for folder in request["folders"]:
            answer = self._measure(folder, "fresh", "everywhere", least=1, calls=1)
            if "failure" in answer:
                return answer
            errors.append(self._difference(answer["values"].reshape(expected.shape), expected))
        return {"errors": errors}

    def _places(self) -> np.ndarray:
        """Where the output is compared: everywhere, or ends and places drawn at random."""
        batch = max(1, self._work.plan.batch)
        size = batch * int(np.prod(self._work.output_shape[1:]))
        if size <= _PLACES:
            return np.arange(size, dtype=np.int64)
        drawn = np.random.default_rng(size).integers(size, size=_PLACES, dtype=np.int64)
        drawn[:2] = 0, size - 1
        return np.sort(drawn)

    def _send(self, name: str, array: np.ndarray) -> Any:
        """Keep an array on the device, as bytes of 8 or of its own width."""
        import tvm

        bits = {2: np.uint16}.get(array.dtype.itemsize)
        plain = array.view(bits) if bits else array
        self._remote[name] = tvm.runtime.tensor(np.ascontiguousarray(plain), self._session.cpu(0))
        return self._remote[name]

    def _function(self, folder: str) -> Any:
        """The function of a candidate on the device, sent there at its first use."""
        from tvmconv.codegen import device as library

        if folder not in self._functions:
            header, archive = (
                (Path(folder) / name.format(building.NAME)).read_bytes()
                for name in ("{}.h", "lib{}.a")
            )
            made = library.build(building.NAME, header, archive, self._triple)
            # The device keeps a library under its name: another one needs another name.
            name = f"{hashlib.sha256(made).hexdigest()[:16]}-{len(self._functions)}.so"
            with tempfile.TemporaryDirectory(prefix="tvmconv-send-") as place:
                (Path(place) / name).write_bytes(made)
                self._session.upload(str(Path(place) / name), name)
            module = self._session.load_module(name)
            self._functions[folder] = module[library.FUNCTION]
        return self._functions[folder]

    def _packed(self, folder: str) -> Any:
        """The packed weights of a candidate, which many have in common."""
        path = (Path(folder) / building.PACKED).resolve()
        name = f"packed {path}"
        return self._remote.get(name) or self._send(name, np.load(path))

    def _measure(self, folder: str, x: str, places: str, **asked: int) -> dict[str, Any]:
        """One run on the device: its seconds and values, or ``failure``."""
        function, packed = self._function(folder), self._packed(folder)
        dtype = numpy_dtype(self._work.output_dtype)
        default = {"threads": 0, "budget_us": 0, "hopeless_ns": 0}
        spec = {
            **default, **asked, "timeout_ms": round(1e3 * self._timeout_s), "memory": self._memory,
            "output_bytes": dtype.itemsize,
        }  # fmt: skip
        count = self._remote[places].shape[0]
        numbers = self._send("spec", np.array([spec[name] for name in _SPEC], np.int64))
        values = self._send("values", np.zeros(count * dtype.itemsize, np.uint8))
        found = self._send("found", np.zeros(_FOUND + asked["calls"]))
        if function(numbers, self._remote[x], packed, self._remote[places], values, found) != 0:
            raise RuntimeError("the device did not understand its arguments")
        state, detail, number, *seconds = found.numpy().tolist()
        if state != _DONE:
            return {"failure": self._failure(int(state), int(detail))}
        return {"seconds": seconds[: int(number)], "values": values.numpy().view(dtype)}

    def _failure(self, state: int, detail: int) -> list[str]:
        """Reason and detail, as in `tvmconv.tuning.records.Failure`."""
        if state == _RETURNED:
            return ["run", f"the library answered {detail}"]
        if state == _TIMEOUT:
            return ["timeout", f"no answer after {self._timeout_s:.0f} s"]
        if state == _SIGNAL:
            names = {int(one): one.name for one in signal.Signals}
            return ["crash", names.get(detail, f"signal {detail}")]
        if state == _NO_MEMORY:
            return ["memory", f"more than {self._memory >> 20} MiB"]
        return ["crash", "it ended without an answer"]


def _greet(tracker: socket.socket) -> None:
    from tvm.rpc import base

    tracker.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
    if struct.unpack("<i", base.recvall(tracker, 4))[0] != base.RPC_TRACKER_MAGIC:
        raise OSError("it is no RPC tracker")


def _asked(tracker: socket.socket, request: list[Any]) -> Any:
    from tvm.rpc import base

    base.sendjson(tracker, request)
    code, *values = base.recvjson(tracker)
    if code != base.TrackerCode.SUCCESS:
        raise OSError(f"the tracker answered {values}")
    return values[0]


def summary(host: str, port: int, seconds: float) -> dict[str, Any]:
    """What a tracker says of its servers and queues.

    Raises
    ------
    OSError, ValueError
        It does not answer in time, or it is something else.
    """
    from tvm.rpc import base

    with socket.create_connection((host, port), seconds) as tracker:
        _greet(tracker)
        return dict(_asked(tracker, [base.TrackerCode.SUMMARY]))


if __name__ == "__main__":
    sys.exit(main())
