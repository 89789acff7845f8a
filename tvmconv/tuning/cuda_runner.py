"""Runs candidates on a CUDA device of this machine, in a child process, one at a time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvmconv.tuning.processes import ChildError
from tvmconv.tuning.runners import LocalRunner

if TYPE_CHECKING:
    from tvmconv.cuda_machine import CudaMachine
    from tvmconv.tuning.records import Failure
    from tvmconv.tuning.runners import Task

__all__ = ["CudaRunner"]

#: Host memory that the driver takes for a context, and the arrays of the check.
_HOST_BYTES = 6 << 30


class CudaRunner(LocalRunner):
    """As `LocalRunner`; a candidate that fails takes its process with it.

    After a fault of a kernel the driver refuses everything that the process asks, and a kernel that
    never ends is ended by the death of its process.
    """

    kind = "run-cuda"
    memory = _HOST_BYTES

    def __init__(
        self, machine: CudaMachine, seed: int = 0, seconds: float = 0.12, run_s: float = 20.0
    ) -> None:
        super().__init__(seed, seconds, run_s)
        assert machine.hardware is not None
        self._device = machine.hardware.index

    def limit_gflops(self) -> float | None:
        """None: what the device reaches follows from what the driver says of it."""
        return None

    def prepare(self, task: Task, default: Path) -> Failure | None:
        """See `Runner`."""
        self._more = {"device": self._device}
        return super().prepare(task, default)

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        try:
            answer = self._child.ask(request, seconds)
        except ChildError:
            self._child.close()
            raise
        if "failure" in answer:
            self._child.close()
            raise ChildError(*answer["failure"])
        return answer
