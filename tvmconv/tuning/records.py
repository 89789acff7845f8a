"""Tuning records: one JSON line for each candidate, in a log that only grows.

A log is a folder ``<log>/<fingerprint of the target>/<key of the workload>.json``. Lines are
appended under a lock, each in one write, so that several processes can share a log and a process
that is killed loses at most the line it was writing. A line that is damaged is left out with a
warning; a line of another version of the format, of the search space, or of TVM is left out in
silence. Nothing here loads TVM.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tvmconv.compute.tiling import algorithm
from tvmconv.errors import TuningError

__all__ = [
    "FORMAT",
    "REASONS",
    "SPACE",
    "VERSION",
    "Failure",
    "Final",
    "Record",
    "append",
    "identity",
    "is_current",
    "locked",
    "read",
    "read_file",
    "tvm_version",
    "workload_files",
]

FORMAT, VERSION = "tvmconv-record", 1
#: Raised whenever a decision changes its meaning: older records are no longer read.
SPACE = 1
#: What can go wrong with a candidate; ``run`` is an error that it reported itself.
REASONS = ("build", "timeout", "crash", "memory", "wrong", "run", "device")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no time: one of `REASONS`, and one line."""

    reason: str
    detail: str


@dataclass(frozen=True)
class Final:
    """The second measurement of a run's winner, in turns with the default, on fresh inputs.

    Attributes
    ----------
    median_s, default_s : float
        Seconds of a call.
    gain, gain_low, gain_high : float
        Median of ``default / winner - 1`` over the rounds, and its 95 % interval; all 0 where the
        default itself won.
    rounds : int
        Turns that were measured.
    max_error : float
        Largest error against the reference on the whole layer, relative to the largest value where
        that is above 1.
    default : dict or None
        The decisions of that default, which a later version of tvmconv may have changed; None in
        records of versions that did not write them down.
    """

    median_s: float
    default_s: float
    gain: float
    gain_low: float
    gain_high: float
    rounds: int
    max_error: float
    default: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "default", json.loads(json.dumps(self.default)))


@dataclass(frozen=True)
class Record:
    """One candidate that was tried, or (with ``final``) the winner of a run.

    Attributes
    ----------
    id : str
        Twelve hexadecimal digits of workload, target and decisions (`identity`).
    run, trial : str, int
        The tuning run, and the candidate's number in it; 0 is the default. A winner has the number
        of the run that tried it, which may be an earlier one.
    when : str
        UTC, ISO 8601.
    target, machine : dict
        ``fingerprint, triple, cpu, features, cores``; ``cpu_model, cores`` of what measured it.
    workload, workload_key, layer : dict, str, str
        What was computed (`tvmconv.tuning.workloads`), and what its layer was called.
    decisions, trace : dict, list or None
        The tiling as plain numbers, and MetaSchedule's trace of the decisions.
    seconds : tuple of float or None
        Of each call that was measured; None where it failed.
    error : Failure or None
        Why it failed.
    gflop, limit_gflops : float, float or None
        Useful operations of a call in 1e9; what a matrix product reaches with as many cores.
    final : Final or None
        Set on a winner alone. Only such records are used by the compiler.
    algorithm : str
        The forms that its run searched: ``auto`` is all of them.
    """

    id: str
    run: str
    trial: int
    when: str
    target: dict[str, Any]
    machine: dict[str, Any]
    workload: dict[str, Any]
    workload_key: str
    layer: str
    decisions: dict[str, Any]
    trace: Any
    seconds: tuple[float, ...] | None
    error: Failure | None
    gflop: float
    limit_gflops: float | None
    final: Final | None
    tvm: str
    tvmconv: str
    space: int = SPACE
    algorithm: str = "auto"

    def __post_init__(self) -> None:
        for name in ("workload", "decisions"):  # tuples are lists once they were read back
            object.__setattr__(self, name, json.loads(json.dumps(getattr(self, name))))

    @property
    def time_s(self) -> float | None:
        """Seconds of the fastest call: what disturbs a measurement only ever adds to it."""
        return min(self.seconds) if self.seconds else None

    @property
    def gflops(self) -> float | None:
        """Useful operations in 1e9 a second, at `time_s`."""
        return self.gflop / self.time_s if self.time_s else None

    @property
    def kind(self) -> str:
        """The algorithm that it computes with, whatever the run was asked for."""
        return algorithm(str(self.decisions.get("form")))

    def to_json(self) -> str:
        """The record as one line, without its end."""
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(values, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """The inverse of `to_json`.

        Raises
        ------
        ValueError
            It is not a record of this version of the format; the message says what is wrong.
        """
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT or values.pop("version") != VERSION:
                raise _ForeignError("a line of another format")
            seconds, error, final = (values.pop(name) for name in ("seconds", "error", "final"))
            made = cls(
                seconds=None if seconds is None else tuple(seconds),
                error=None if error is None else Failure(**error),
                final=None if final is None else Final(**final),
                **values,
            )
            made._check()
            return made
        except _ForeignError:
            raise
        except (KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise ValueError(f"{type(exc).__name__}: {exc}") from exc

    def _check(self) -> None:
        """What a file from elsewhere may have wrong and code relies on."""
        texts = (
            self.id, self.run, self.when, self.workload_key, self.layer, self.tvm, self.algorithm
        )  # fmt: skip
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a name is not text")
        for one in (self.target, self.machine, self.workload, self.decisions):
            if not isinstance(one, dict):
                raise ValueError("a part is not an object")
        if not isinstance(self.target.get("fingerprint"), str):
            raise ValueError("it names no target")
        numbers = list(self.seconds or ())
        if self.final is not None:
            numbers += [self.final.median_s, self.final.default_s]
            if not isinstance(self.final.default, (dict, type(None))):
                raise ValueError("the default's decisions are not an object")
        if not all(isinstance(s, (int, float)) and 0 < s < 1e6 for s in numbers):
            raise ValueError("a time is not a number above zero")
        if self.seconds == () or (self.seconds is None and self.error is None):
            raise ValueError("it holds neither a time nor an error")


class _ForeignError(ValueError):
    """A whole line, but of another format."""


def identity(workload_key: str, fingerprint: str, decisions: dict[str, Any]) -> str:
    """The id of a candidate: the same whoever tries it."""
    text = json.dumps([workload_key, fingerprint, decisions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def tvm_version() -> str:
    """The version of the TVM that is installed, without loading it; ``none``."""
    try:
        return metadata.version("apache-tvm")
    except metadata.PackageNotFoundError:
        return "none"


def is_current(record: Record) -> bool:
    """Whether this version may use a record: the same search space, the same release of TVM."""

    def release(version: str) -> list[str]:
        return version.split(".")[:3]

    return record.space == SPACE and release(record.tvm) == release(tvm_version())


def workload_files(folder: Path, fingerprint: str | None = None) -> list[Path]:
    """The files of a log, of one target or of all.

    Raises
    ------
    TuningError
        The folder cannot be read.
    """
    try:
        return sorted(folder.glob(f"{fingerprint or '*'}/*.json"))
    except OSError as exc:
        raise TuningError(f"the log {folder} cannot be read: {exc.strerror or exc}") from exc


def read_file(path: Path) -> Iterator[Record]:
    """The records of one file, in the order in which they were written; all versions of the space.

    Raises
    ------
    TuningError
        The file cannot be read. A missing one has no records.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as exc:
        raise TuningError(f"the log {path} cannot be read: {exc.strerror or exc}") from exc
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield Record.from_json(line)
        except _ForeignError:
            _log.debug("%s:%d is of another version", path, number)
        except ValueError as exc:
            _log.warning("%s:%d is damaged and left out: %s", path, number, exc)


def read(folder: Path, fingerprint: str, workload_key: str) -> list[Record]:
    """The records of one workload on one target that this version can use.

    Raises
    ------
    TuningError
        The file cannot be read.
    """
    path = folder / fingerprint / f"{workload_key}.json"
    return [
        record
        for record in read_file(path)
        if is_current(record)
        and record.workload_key == workload_key
        and record.target["fingerprint"] == fingerprint
    ]


def append(folder: Path, records: Iterable[Record]) -> None:
    """Add records to a log, each to the file of its workload.

    Raises
    ------
    TuningError
        The log cannot be written; names the folder.
    """
    files: dict[Path, list[Record]] = {}
    for record in records:
        place = folder / record.target["fingerprint"] / f"{record.workload_key}.json"
        files.setdefault(place, []).append(record)
    for path, lines in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, "".join(f"{record.to_json()}\n" for record in lines).encode())
        except OSError as exc:
            raise TuningError(
                f"the log {folder} cannot be written: {exc.strerror or exc}; give another folder "
                "with --logs"
            ) from exc


def locked(path: Path) -> int:
    """Open a file of a log to append to it, once no other process has it; closing it gives it back.

    Whoever replaces the file holds its lock: one that is another file by then is opened again.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _append(path: Path, data: bytes) -> None:
    handle = locked(path)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data  # behind a line that its writer did not finish
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(handle, size)  # a full disk: all of it or nothing
            raise
    finally:
        os.close(handle)
