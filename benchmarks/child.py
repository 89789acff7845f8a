"""The other end of a worker: starts it, asks it, and outlives it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

__all__ = ["Child", "Silence", "installed"]

ROOT = Path(__file__).parent.parent
_TIMEOUT_S = 600.0
_QUIET_S = 2.0
# What frameworks read when they start, so that none of them starts more threads than it is asked
# for.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS",
    "TVM_NUM_THREADS",
)  # fmt: skip
# What limits a library to older instructions or smaller blocks than the processor has, wherever it
# was set.
_NARROWING = ("OPENBLAS_", "MKL_", "ATEN_CPU", "ONEDNN_", "DNNL_")


def installed() -> dict[str, str]:
    """The environment of a process whose start is timed: modules are compiled once.

    So they are for users, when pip installs them, whatever the caller's environment asks for.
    """
    return {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


class Silence(Exception):
    """A worker ended or did not answer; the text says what it said last."""


class Child:
    """A worker process.

    Parameters
    ----------
    home
        Module and class of its runner.
    threads
        How many it may use.
    variables
        Added to its environment.

    Raises
    ------
    Silence
        It did not start.
    """

    def __init__(
        self, home: str, threads: int, variables: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        # Closed in `close`.
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        # The benchmark sets the number of threads; everything else is left as frameworks like it.
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_NARROWING)}
        environment |= {**dict.fromkeys(_THREAD_VARIABLES, str(threads)), **variables}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", home, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then ends its workers
        )
        first = self._answer(_TIMEOUT_S)
        self.version: str = first.get("version", "")
        self.reason: str = first.get("reason", "")

    @property
    def process(self) -> int:
        """Its process number."""
        return self._process.pid

    def ask(self, op: str, timeout_s: float = _TIMEOUT_S, **message: Any) -> dict[str, Any]:
        """Send a message and wait for the answer, then until all its threads sleep.

        Raises
        ------
        Silence
            It ended, or took too long and was ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **message}).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as exc:
            raise Silence(self._last_words()) from exc
        answer = self._answer(timeout_s)
        self._wait_for_quiet()
        return answer

    def close(self) -> None:
        """End it."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        # One line is one answer, and it is written at once: nothing stays in the buffer behind it.
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        if not ready:
            self._process.kill()
            raise Silence(f"no answer within {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise Silence(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        try:
            code: int | None = self._process.wait(10)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        return f"the process ended with {code}: {lines[-1] if lines else 'it said nothing'}"

    def _wait_for_quiet(self) -> None:
        """Wait until no thread of it runs: some frameworks spin for a while after a call."""
        tasks = Path(f"/proc/{self._process.pid}/task")
        end = time.monotonic() + _QUIET_S
        while time.monotonic() < end and _running(tasks):
            time.sleep(0.002)


def _running(tasks: Path) -> bool:
    try:
        for task in tasks.iterdir():
            # The name in parentheses may hold anything; the state is the letter behind the last
            # one.
            if (task / "stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    except OSError:
        return False
    return False
