"""TVM's RPC tracker and servers on loopback, as processes that can be killed one by one."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tvmconv.tuning import device
from tvmconv.tuning.fleet import Tracker

KEY = "board"
_PATIENCE_S = 300.0


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Wait, for a long but bounded time."""
    end = time.monotonic() + _PATIENCE_S
    while not true():
        assert time.monotonic() < end, f"waited {_PATIENCE_S:.0f} s for {what}"
        time.sleep(0.1)


def signal_all(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(number)


class Devices:
    """A tracker and any number of servers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.tracker = Tracker("127.0.0.1", self.port, KEY)
        self._processes = [self._start("rpc_tracker", self.port)]
        wait_until(lambda: self._known() is not None, "the tracker")

    def serve(self, key: str = KEY) -> subprocess.Popen[bytes]:
        """One more device, once the tracker knows it."""
        before = self.free(key)
        tracker = ["--tracker", f"127.0.0.1:{self.port}", "--key", key]
        self._processes.append(self._start("rpc_server", free_port(), *tracker))
        wait_until(lambda: self.free(key) > before, "a server")
        return self._processes[-1]

    def stop(self) -> None:
        """Kill all."""
        for process in self._processes:
            signal_all(process, signal.SIGKILL)
            process.wait()

    def _start(self, what: str, port: int, *more: str) -> subprocess.Popen[bytes]:
        place = ["--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 1)]
        with (self._folder / f"{what}-{port}.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"tvm.exec.{what}", *place, *more],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "TMPDIR": str(self._folder)},
            )

    def _known(self) -> dict[str, object] | None:
        try:
            return device.summary("127.0.0.1", self.port, 60.0)
        except OSError:
            return None

    def free(self, key: str = KEY) -> int:
        """Devices of a key that nobody uses."""
        queues = (self._known() or {}).get("queue_info", {})
        return int(queues.get(key, {}).get("free", 0))  # type: ignore[attr-defined]


@contextlib.contextmanager
def devices(folder: Path, count: int) -> Iterator[tuple[Devices, list[subprocess.Popen[bytes]]]]:
    """A tracker with so many servers."""
    made = Devices(folder)
    try:
        yield made, [made.serve() for _ in range(count)]
    finally:
        made.stop()
