"""Running candidates on a device: what the process that holds the connection does.

`RpcDevice` is one behind TVM's RPC; `tvmconv.tuning.board` has the one behind ssh.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tvmconv.config import LayerConfig, numpy_dtype
from tvmconv.runtime import cuda_driver
from tvmconv.tuning import building, running, worker

__all__ = ["FOUND", "SPEC", "Device", "RpcDevice", "main", "serve", "summary"]

#: Output elements that are compared; of larger outputs so many are drawn.
_PLACES = 1 << 15
_CALLS = 3000
#: The order of `spec` and of the states in device.c.
SPEC = (
    "threads", "least", "calls", "budget_us", "hopeless_ns", "timeout_ms", "memory", "output_bytes",
    "input_bytes",
)  # fmt: skip
_DONE, _RETURNED, _TIMEOUT, _SIGNAL, _NO_MEMORY = range(5)
#: What the answer holds before the times: state, detail, number of times.
FOUND = 3


def main() -> int:
    """Serve the requests of one device's slot."""
    return serve(RpcDevice())


def serve(device: Device) -> int:
    """Answer requests to a device until there are no more."""
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
    """A connection to a device, and the layer that candidates compute there."""

    def __init__(self) -> None:
        super().__init__()
        self._memory = 0
        self._timeout_s = 0.0
        self._triple = ""

    def connect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Open the connection; answers with the name of the device."""
        raise NotImplementedError

    def prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send the input, and take what the default computes as what others should."""
        from tvmconv.compute.workload import Workload

        self._config = LayerConfig.from_keras(request["config"])
        self._work = Workload.of(self._config, request["shape"])
        self._memory, self._timeout_s = request["memory"], request["timeout"]
        self._triple = request["triple"]
        self._forget()
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
        return {"seconds": running.few(answer["seconds"]), "difference": difference}

    def duel(self, request: dict[str, Any]) -> dict[str, Any]:
        """Seconds of a call of each folder's candidate, in turns, on fresh inputs; by round."""
        self._send("fresh", self._input(request["seed"]))
        self._send("nowhere", np.zeros(1, np.int64))
        count = len(request["folders"])
        rng = np.random.default_rng(request["seed"])
        calls = max(3, min(200, int(request["slice"] / max(1e-6, request["call"]))))
        turns = [rng.permutation(count) for _ in range(request["most"])]
        folders = [request["folders"][at] for turn in turns for at in turn]
        answers = self._measured(folders, "fresh", "nowhere", least=calls, calls=calls)
        if "failure" in answers[-1]:
            return answers[-1]
        rounds = np.zeros((len(turns), count))
        for turn, row, at in zip(turns, rounds, range(0, len(folders), count), strict=True):
            row[turn] = [np.median(one["seconds"]) for one in answers[at : at + count]]
        return {"rounds": rounds.tolist()}

    def check(self, request: dict[str, Any]) -> dict[str, Any]:
        """Largest error of each folder's candidate against the reference, on the whole layer."""
        from tvmconv import reference

        kernel, *bias = building.weights(self._config, self._work, 0)
        x = self._input(request["seed"])
        expected = reference.conv3d_transpose(self._config, x, kernel, bias[0] if bias else None)
        self._send("fresh", x)
        self._send_everywhere(expected.size)
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

    def _measure(self, folder: str, x: str, places: str, **asked: int) -> dict[str, Any]:
        """One run on the device: its seconds and values, or ``failure``."""
        return self._measured([folder], x, places, **asked)[0]

    def _measured(
        self, folders: Sequence[str], x: str, places: str, **asked: int
    ) -> list[dict[str, Any]]:
        """A run of each candidate, one after the other; the last one is the first that fails."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Another layer comes: nothing that was sent is needed any more."""
        raise NotImplementedError

    def _send(self, name: str, array: np.ndarray) -> None:
        """Keep an array on the device."""
        raise NotImplementedError

    def _send_everywhere(self, size: int) -> None:
        """Keep ``everywhere``, the places of all output elements."""
        self._send("everywhere", np.arange(size, dtype=np.int64))

    def _spec(self, asked: dict[str, int]) -> list[int]:
        """The numbers that say what is asked."""
        default = {"threads": 0, "budget_us": 0, "hopeless_ns": 0}
        spec = {
            **default, **asked, "timeout_ms": round(1e3 * self._timeout_s), "memory": self._memory,
            "output_bytes": numpy_dtype(self._work.output_dtype).itemsize,
            "input_bytes": numpy_dtype(self._work.input_dtype).itemsize,
        }  # fmt: skip
        return [spec[name] for name in SPEC]

    def _answer(self, found: np.ndarray, values: np.ndarray) -> dict[str, Any]:
        """What the device found, and the bytes of its output, as an answer."""
        state, detail, number, *seconds = found.tolist()
        if state != _DONE:
            return {"failure": self._failure(int(state), int(detail))}
        dtype = numpy_dtype(self._work.output_dtype)
        return {"seconds": seconds[: int(number)], "values": values.view(dtype)}

    def _failure(self, state: int, detail: int) -> list[str]:
        """Reason and detail, as in `tvmconv.tuning.records.Failure`."""
        if state == _RETURNED and detail - cuda_driver.FIRST_CODE in cuda_driver.FAULTS:
            return ["crash", f"a kernel failed: the library answered {detail}"]
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


class RpcDevice(Device):
    """A session on a device behind TVM's RPC tracker."""

    def __init__(self) -> None:
        super().__init__()
        self._session: Any = None
        self._remote: dict[str, Any] = {}
        self._functions: dict[str, Any] = {}

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

    def _forget(self) -> None:
        self._remote = {}

    def _send(self, name: str, array: np.ndarray) -> None:
        """Keep an array on the device, as bytes of 8 or of its own width."""
        import tvm

        bits = {2: np.uint16}.get(array.dtype.itemsize)
        plain = array.view(bits) if bits else array
        self._remote[name] = tvm.runtime.tensor(np.ascontiguousarray(plain), self._session.cpu(0))

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
        if name not in self._remote:
            self._send(name, np.load(path))
        return self._remote[name]

    def _measured(
        self, folders: Sequence[str], x: str, places: str, **asked: int
    ) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        remote = self._remote
        width = numpy_dtype(self._work.output_dtype).itemsize
        for folder in folders:
            function, packed = self._function(folder), self._packed(folder)
            self._send("spec", np.array(self._spec(asked), np.int64))
            self._send("values", np.zeros(remote[places].shape[0] * width, np.uint8))
            self._send("found", np.zeros(FOUND + asked["calls"]))
            values, found = remote["values"], remote["found"]
            if function(remote["spec"], remote[x], packed, remote[places], values, found) != 0:
                raise RuntimeError("the device did not understand its arguments")
            answers.append(self._answer(found.numpy(), values.numpy()))
            if "failure" in answers[-1]:
                break
        return answers


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
