"""The process that a runner lives in: ``python -m benchmarks.worker HOME THREADS``.

It reads one JSON object a line and answers with one. What libraries print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.data import Data
from benchmarks.memory import peak_of
from benchmarks.runners import Prepared, Runner, make
from benchmarks.workloads import Workload

__all__ = ["main"]

_MOST_CALLS = 1000


class _Worker:
    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._prepared: Prepared | None = None

    def prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        """Get a layer ready, call it twice and check the second output."""
        data = Data(Workload.from_json(message["work"]))
        artifact = message.get("artifact")
        prepared = self._runner.prepare(data, Path(artifact) if artifact else None)
        added = peak_of(prepared.call)
        start = time.perf_counter()
        prepared.call()
        once = time.perf_counter() - start
        output = prepared.output()
        error = None if output is None else data.error(output)
        self._prepared = prepared
        return {"added_bytes": added, "once_s": once, "error": error, "amount": prepared.amount}

    def turn(self, message: dict[str, Any]) -> dict[str, Any]:
        """Time calls for a while, after one that wakes threads and fills caches."""
        assert self._prepared is not None
        call, clock = self._prepared.call, time.perf_counter
        gc.collect()
        gc.disable()
        call()
        times: list[float] = []
        end = clock() + message["seconds"]
        while len(times) < _MOST_CALLS:
            start = clock()
            call()
            stop = clock()
            times.append(stop - start)
            if stop >= end:
                break
        gc.enable()
        return {"times_s": times}

    def release(self, message: dict[str, Any]) -> dict[str, Any]:
        """Let the layer go."""
        del message
        self._prepared = None
        gc.collect()
        return {}


def _stay_on(threads: int) -> None:
    """Keep to as many processors as there are threads: one core means one."""
    allowed = sorted(os.sched_getaffinity(0))
    if threads < len(allowed):
        os.sched_setaffinity(0, allowed[-threads:])


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    home, threads = sys.argv[1], int(sys.argv[2])
    _stay_on(threads)

    def answer(found: dict[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")

    try:
        worker = _Worker(runner := make(home, threads))
    except ImportError as exc:
        answer({"reason": f"not installed ({exc})", "missing": True})
        return
    answer({"version": runner.version})
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer(getattr(worker, message["op"])(message))
        except Exception as exc:  # of any framework: a row of the table, and the next layer goes on
            answer({"reason": f"{type(exc).__name__}: {exc}".splitlines()[0]})


if __name__ == "__main__":
    main()
