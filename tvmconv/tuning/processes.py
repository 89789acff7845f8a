"""Child processes that do one thing after the other, under limits, and are replaced when they die.

Requests and answers are JSON lines over pipes. A child that takes too long or too much memory is
killed; what it was asked then fails with a reason, and the next request starts a new one. A child
dies with its parent, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvmconv.tuning.records import Failure

__all__ = ["Child", "ChildError"]

#: Seconds between looks at a child, and what one look counts at most: a machine that was suspended,
#: or a parent that was stopped, must not use up a child's time.
_LOOK_S, _MOST_S = 0.05, 0.2
_START_S = 120.0


class ChildError(Exception):
    """A request failed; ``failure`` says why."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.failure = Failure(reason, detail)


class Child:
    """One child process, started at the first request.

    Parameters
    ----------
    kind
        What the child is for: a name that `tvmconv.tuning.worker` knows.
    memory
        Bytes of memory that it may take.
    """

    def __init__(self, kind: str, memory: int, command: Sequence[str] | None = None) -> None:
        self._command = command or [sys.executable, "-m", "tvmconv.tuning.worker", kind]
        self.memory = memory
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    @property
    def running(self) -> bool:
        """Whether there is a process that remembers what it was asked before."""
        return self._process is not None and self._process.poll() is None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises
        ------
        ChildError
            The child died, took too long or too much memory, or answered with an error.
        """
        if not self.running:
            self._start()
        answer = self._exchange(request, seconds)
        if "error" in answer:
            reason, detail = answer["error"]
            raise ChildError(str(reason), str(detail))
        return answer

    def kill(self) -> None:
        """End the process while another thread waits for its answer, which fails then."""
        process = self._process
        if process is not None:
            _kill(process)

    def close(self) -> None:
        """End the process."""
        process, self._process, self._rest = self._process, None, b""
        if process is None:
            return
        _kill(process)
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        process.wait()

    def _start(self) -> None:
        self.close()
        # A session of its own: Ctrl-C reaches the parent alone, which decides what happens.
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._answer(_START_S)  # it says when it is ready

    def _exchange(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._died()
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        handle = process.stdout.fileno()
        spent, last = 0.0, time.monotonic()
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                return dict(json.loads(line))
            if select.select([handle], [], [], _LOOK_S)[0]:
                data = os.read(handle, 1 << 16)
                if not data:
                    self._died()
                self._rest += data
                continue
            now = time.monotonic()
            spent, last = spent + min(_MOST_S, now - last), now
            if spent > seconds:
                self.close()
                raise ChildError("timeout", f"no answer after {seconds:.0f} s")
            taken = _resident(process.pid)
            if taken > self.memory:
                self.close()
                raise ChildError(
                    "memory", f"it took {taken >> 20} MiB, {self.memory >> 20} are allowed"
                )

    def _died(self) -> None:
        assert self._process is not None
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:  # it closed its pipe and lives on
            code = 0
        self.close()
        if code == -signal.SIGKILL:
            raise ChildError("memory", "killed by the system, as it does when memory runs out")
        if code < 0:
            with contextlib.suppress(ValueError):
                raise ChildError("crash", f"{signal.Signals(-code).name}")
        raise ChildError("crash", f"it ended with exit code {code}")


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started: it leads a group of its own."""
    with contextlib.suppress(OSError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):  # it is gone, or the system has no such file
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
