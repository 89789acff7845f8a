"""The child processes of tuning: ``build`` loads TVM, ``run`` loads NumPy and a candidate's code.

A child reads requests as JSON lines and answers each with one. What a candidate prints goes
nowhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

from tvmconv.errors import DeviceError
from tvmconv.processors import without_torch

__all__ = ["main", "serve"]

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve the requests of the kind named on the command line."""
    kind = sys.argv[1]
    if kind == "build":
        from tvmconv.tuning import building, cuda_building

        return serve({"build": building.build, "build-cuda": cuda_building.build})
    if kind == "run-cuda":
        from tvmconv.tuning import cuda_running

        return serve(cuda_running.handlers())
    from tvmconv.tuning import running

    bench = running.Bench()
    return serve(
        {
            "limit": bench.limit,
            "prepare": bench.prepare,
            "time": bench.time,
            "duel": bench.duel,
            "check": bench.check,
        }
    )


def serve(handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> int:
    """Answer requests until there are no more."""
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    _write(answers, {"ready": True})
    without_torch()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = handlers[request.pop("do")](request)
        except MemoryError as exc:
            answer = {"error": ["memory", f"not enough memory {exc}".strip()]}
        except DeviceError as exc:
            answer = {"error": ["device", str(exc)]}
        except Exception as exc:
            text = (str(exc).strip() or "no message").splitlines()[-1]
            answer = {"error": ["error", f"{type(exc).__name__}: {text[:300]}"]}
        _write(answers, answer)
    return 0


def _write(handle: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(handle, data) :]


def _die_with_parent() -> None:
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
