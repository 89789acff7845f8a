"""Devices as one runner, behind TVM's RPC tracker or ssh: candidates are timed on all at once.

Each device has a slot, which is a child process that holds the connection. A device that dies or
hangs takes its slot with it, unless it or another one can be reached again; what it was asked goes
to the next. A candidate's own faults never cost a device: it runs in a process of its own there.
"""

from __future__ import annotations

import logging
import math
import queue
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tvmconv.cuda_machine import CudaMachine
from tvmconv.errors import TuningError
from tvmconv.ssh import Ssh
from tvmconv.tuning import platforms
from tvmconv.tuning.processes import Child, ChildError
from tvmconv.tuning.records import Failure
from tvmconv.tuning.runners import Timed
from tvmconv.tuning.tracker import Tracker

if TYPE_CHECKING:
    from tvmconv.tuning.runners import Task

__all__ = ["Devices", "Fleet", "Tracker", "check", "options"]

_log = logging.getLogger(__name__)
#: Devices that a candidate is sent to before it is given up.
_ATTEMPTS = 2
#: Seconds: for a device, for a session and the first data, for one candidate.
_DEVICE_S, _PREPARE_S, _RUN_S = 15.0, 300.0, 20.0
_CHECK_S = 1200.0
_HANGING = 50.0
_HOST_BYTES, _DEVICE_BYTES = 4 << 30, 1 << 30


class Devices(Protocol):
    """Where devices are, and how a child process reaches one."""

    @property
    def module(self) -> str:
        """What the child process runs."""

    @property
    def patience_s(self) -> float:
        """Seconds that an answer may take on its way."""

    def devices(self) -> int:
        """How many there are to use; raises an error that says why there are none."""

    def connection(self, seconds: float) -> dict[str, Any]:
        """What a child process needs to know, to find one in so many; raises `ChildError`."""

    def about(self, cores: int) -> dict[str, Any]:
        """What measures, as in a record; a target of theirs has so many cores."""

    def gone(self, reason: str) -> str:
        """The message when none is left, and why the last one was lost."""

    def close(self) -> None:
        """Give them back."""


@dataclass
class _Slot:
    """One child process with a session; ``task`` counts what it was prepared for."""

    child: Child
    device: str = ""
    task: int = 0


class _LostError(Exception):
    """The device, or the way to it, is gone."""


def check(text: str) -> None:
    """Refuse what names no device, before any work is done for it.

    Raises
    ------
    ConfigError
        It is neither of tracker:HOST:PORT,KEY and ssh:HOST.
    """
    if text.startswith("ssh:"):
        Ssh.parse(text)
    else:
        Tracker.parse(text)


def options(text: str, tasks: Sequence[Task], seed: int = 0) -> dict[str, Any]:
    """What ``--device`` gives to `tvmconv.tuning.run.tune_tasks`: a runner, and its name.

    Raises
    ------
    ConfigError, BuildError, TuningError, DeviceError
        See `Tracker` and `tvmconv.tuning.board.Board`.
    """
    machine = tasks[0].machine
    where: Devices
    if text.startswith("ssh:"):
        from tvmconv.tuning.board import Board

        where = Board(text, machine.triple, static=not isinstance(machine, CudaMachine))
    else:
        where = Tracker.parse(text)
    runner = Fleet(where, seed)
    return {"runner": runner, "measured_by": platforms.measured_there(machine, where.about)}


class Fleet:
    """A runner (`tvmconv.tuning.runners.Runner`) over devices.

    Parameters
    ----------
    where
        Where they are.
    seed, seconds
        As of `LocalRunner`: of the input, and of the time for one candidate.

    Raises
    ------
    BuildError, TuningError, DeviceError
        See `Devices.devices`.
    """

    def __init__(self, where: Devices, seed: int = 0, seconds: float = 0.12) -> None:
        self._where, self._seed, self._seconds = where, seed, seconds
        command = [sys.executable, "-m", where.module]
        slots = [_Slot(Child("device", _HOST_BYTES, command)) for _ in range(where.devices())]
        self._all = slots
        self._idle: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in slots:
            self._idle.put(slot)
        self._pool = ThreadPoolExecutor(len(slots))
        self._task, self._closing, self._reason = 0, False, ""
        self._request: dict[str, Any] = {}
        self._tolerance = 0.0
        self._default_s: float | None = None

    @property
    def devices(self) -> int:
        """The number of devices that are left."""
        return len(self._all)

    @property
    def width(self) -> int:
        """Candidates that keep all devices busy: two for each, since some take longer."""
        return 2 * max(1, self.devices)

    def limit_gflops(self) -> float | None:
        """None: what a matrix product reaches on a device is not known."""
        return None

    def prepare(self, task: Task, default: Path) -> Failure | None:
        """Take the default's artifact as what the others are compared with, on every device."""
        work = task.work
        elements = math.prod(work.plan.input_shape[1:]) + 3 * math.prod(work.output_shape[1:])
        self._task += 1
        self._default_s = None
        self._tolerance = task.tolerance
        self._request = {
            "do": "prepare",
            "config": task.config.get_config(),
            "shape": task.shape,
            "seed": self._seed,
            "default": str(default),
            "memory": _DEVICE_BYTES + 16 * max(1, work.plan.batch) * elements,
            "timeout": _RUN_S,
            "triple": task.machine.triple,
        }
        found = list(self._pool.map(lambda _: self._prepared(), range(self.devices)))
        return found[0] if all(found) else None

    def _prepared(self) -> Failure | None:
        try:
            answer = self._run(self._ready)
        except _LostError as exc:
            return Failure("device", str(exc))
        return Failure(*answer["failure"]) if "failure" in answer else None

    def time(self, folder: Path, best_s: float | None) -> Timed:
        """Compare a candidate with the default, and time it, on whichever device is free."""
        request = {
            "do": "time", "folder": str(folder), "seconds": self._seconds, "best": best_s
        }  # fmt: skip
        try:
            answer = self._asked(request, _RUN_S + _HANGING * (self._default_s or 1.0))
        except _LostError as exc:
            return Timed(None, Failure("device", str(exc)))
        if "failure" in answer:
            return Timed(None, Failure(*answer["failure"]))
        difference = answer["difference"]
        if difference is None or not difference <= self._tolerance:
            shown = "not finite" if difference is None else f"off by {difference:.1e}"
            return Timed(None, Failure("wrong", f"{shown}, {self._tolerance:.0e} is allowed"))
        seconds = tuple(answer["seconds"])
        self._default_s = self._default_s or min(seconds)
        return Timed(seconds)

    def times(self, folders: Sequence[Path], best_s: float | None) -> list[Timed]:
        """`time` of several candidates, on all devices at once."""
        return list(self._pool.map(lambda folder: self.time(folder, best_s), folders))

    def duel(self, folders: Sequence[Path], call_s: float) -> list[list[float]]:
        """Seconds of a call of each candidate in turns, all on one device; a row for each round.

        Raises
        ------
        ChildError
            A candidate failed, or device after device was lost.
        """
        request = {
            "do": "duel",
            "folders": [str(folder) for folder in folders],
            "seed": self._seed + 1,
            "call": call_s,
            "slice": 0.03,
            "most": 20,
        }
        return [[float(s) for s in row] for row in self._whole(request)["rounds"]]

    def check(self, folders: Sequence[Path]) -> list[float | None]:
        """Largest error against the reference on the whole layer; None where it is not finite.

        Raises
        ------
        ChildError
            See `duel`.
        """
        seed = self._seed + 2
        request = {"do": "check", "folders": [str(folder) for folder in folders], "seed": seed}
        return list(self._whole(request)["errors"])

    def close(self) -> None:
        """End the sessions; the devices are free again."""
        self._closing = True
        slots = list(self._all)
        for slot in slots:
            slot.child.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for slot in slots:
            slot.child.close()
        self._where.close()

    def _whole(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = self._asked(request, _CHECK_S)
        except _LostError as exc:
            raise ChildError("device", str(exc)) from exc
        if "failure" in answer:
            raise ChildError(*answer["failure"])
        return answer

    def _asked(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer of a device; another one is asked where the first is lost.

        Raises
        ------
        _LostError
            They were lost one after the other.
        TuningError
            None is left.
        """

        def work(slot: _Slot) -> dict[str, Any]:
            self._ready(slot)
            return slot.child.ask(request, seconds + self._where.patience_s)

        for attempt in range(_ATTEMPTS):
            try:
                return self._run(work)
            except _LostError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    def _run(self, work: Callable[[_Slot], dict[str, Any]]) -> dict[str, Any]:
        """Do something with an idle slot; one whose device is lost gets another or is dropped."""
        slot = self._take()
        try:
            answer = work(slot)
        except ChildError as exc:
            lost = f"{slot.device or 'a device'}: {exc.failure.reason}: {exc.failure.detail}"
            self._reason = exc.failure.detail
            _log.warning("lost %s", lost)
            self._replace(slot)
            raise _LostError(lost) from exc
        except BaseException:
            self._idle.put(slot)
            raise
        self._idle.put(slot)
        return answer

    def _take(self) -> _Slot:
        while self._all:
            try:
                return self._idle.get(timeout=1.0)
            except queue.Empty:
                continue
        raise TuningError(
            f"{self._where.gone(self._reason)}; what was learnt is kept, and the same command "
            "goes on"
        )

    def _replace(self, slot: _Slot) -> None:
        """A new session for a slot, with the same device or another one; else it is dropped."""
        slot.child.close()
        slot.device, slot.task = "", 0
        try:
            if self._closing:
                raise ChildError("device", "the sessions are closed")
            self._connect(slot)
        except ChildError as exc:
            slot.child.close()
            self._all.remove(slot)
            _log.warning("%d devices are left (%s)", len(self._all), exc.failure.detail)
        else:
            self._idle.put(slot)

    def _connect(self, slot: _Slot) -> None:
        request = {"do": "connect", **self._where.connection(_DEVICE_S)}
        slot.device = str(slot.child.ask(request, 2 * _DEVICE_S)["device"])

    def _ready(self, slot: _Slot) -> dict[str, Any]:
        """A session that knows the layer: a new one after a loss."""
        if not slot.child.running or not slot.device:
            self._connect(slot)
        if slot.task == self._task:
            return {}
        answer = slot.child.ask(self._request, _PREPARE_S)
        slot.task = self._task
        return answer
